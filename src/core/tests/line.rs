//! The interrupt line: after a pause, a restore, and a reset.

use super::*;

#[test]
fn a_call_that_the_pause_overtook_is_made_after_it() {
    let mut bench = Bench::new(Policy::new(Action::Reset));
    bench.start(512);
    bench.now = bench.now + TIMEOUT;
    for _ in 0..2 {
        bench.core.wake(bench.now);
        let line = bench.core.next_call(bench.now).expect("stage 1 has ended");
        assert_eq!(line, Call::SetLine(true));
        bench.core.put_back(line);
    }
    bench.serve();
    assert_eq!(bench.levels, [true]);
    assert_eq!(bench.told(), [(Stage::Timeout, Action::Reset, 1)]);
}

#[test]
fn a_vm_saved_before_its_line_was_set_has_it_set_after_the_restore() {
    let mut bench = Bench::new(Policy::new(Action::Reset));
    bench.start(512);
    bench.now = bench.now + TIMEOUT / 2;
    bench.core.wake(bench.now);
    let line = bench.core.next_call(bench.now).expect("stage 1 has ended");
    bench.core.put_back(line);
    let state = bench.core.save(bench.now);
    assert!(state.device.wdt_int_act);

    let mut restored = Bench::new(Policy::default());
    restored.core.restore(&state, restored.now).unwrap();
    assert_eq!(restored.core.next_wake(), Some(VmInstant::ZERO));
    restored.serve();
    assert_eq!(restored.levels, [true]);

    bench.serve();
    let mut restored = Bench::new(Policy::default());
    restored.core.restore(&bench.core.save(bench.now), restored.now).unwrap();
    restored.serve();
    assert!(restored.levels.is_empty(), "no edge where the line was set before");
}

#[test]
fn a_restore_during_a_change_of_the_line_has_the_level_of_the_device_set() {
    let mut bench = Bench::new(Policy::new(Action::Reset));
    let idle = bench.core.save(bench.now);
    bench.start(512);
    bench.now = bench.now + TIMEOUT / 2;
    bench.core.wake(bench.now);
    assert_eq!(bench.core.next_call(bench.now), Some(Call::SetLine(true)));
    bench.core.restore(&idle, bench.now).unwrap();
    bench.core.line_set(true);
    bench.serve();
    assert_eq!(bench.levels, [false]);
}

#[test]
fn a_reset_lowers_a_line_that_could_not_be_set_before() {
    let mut bench = Bench::new(Policy::new(Action::Reset));
    bench.start(512);
    bench.now = bench.now + TIMEOUT / 2;
    bench.core.wake(bench.now);
    assert_eq!(bench.core.next_call(bench.now), Some(Call::SetLine(true)));
    bench.core.line_set(false);
    assert_eq!(bench.core.line_change(), None, "a line that fails is not tried again at once");
    bench.core.reset();
    assert_eq!(bench.core.line_change(), Some(Call::SetLine(false)));
}
