//! Calls of the VMM's code: handlers, interrupt lines, run-delay readers.
//!
//! Such code may panic, and so may the destructors of its errors and of its panics. None of that leaves this module, and
//! none of it runs under a lock of this library.

use std::any::Any;
use std::fmt::Display;
use std::mem::forget;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls foreign code. An error or a panic comes back as its text.
pub(crate) fn call<R, E: Display>(foreign: impl FnOnce() -> Result<R, E>) -> Result<R, String> {
    contain(foreign)?.map_err(|error| {
        let text = contain(|| error.to_string());
        // Apart from the message: a destructor that panics while another panic unwinds aborts the process.
        let dropped = contain(|| drop(error));
        dropped.and(text).unwrap_or_else(|panic| panic)
    })
}

/// Runs foreign code. A panic comes back as its text.
pub(crate) fn contain<R>(foreign: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(foreign)).map_err(|payload| {
        let text = panic_text(&*payload);
        // The destructor of a payload may panic in its turn; the payload of that is not dropped.
        if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            forget(another);
        }
        format!("panic: {text}")
    })
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    struct PanicsOnDrop;

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            panic_any(Self);
        }
    }

    impl Display for PanicsOnDrop {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("no text")
        }
    }

    #[test]
    fn panics_of_destructors_stay_here() {
        assert_eq!(contain(|| panic_any(PanicsOnDrop)), Err::<(), _>("panic: no message".to_owned()));
        assert_eq!(call(|| Err::<(), _>(PanicsOnDrop)), Err("panic: no message".to_owned()), "nor those of its text");
        assert_eq!(
            call(|| -> Result<(), String> { panic!("with {} message", 1) }),
            Err("panic: with 1 message".into())
        );
        assert_eq!(call(|| Err::<(), _>("refused")), Err("refused".to_owned()));
    }
}
