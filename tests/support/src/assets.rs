//! Folders that are made once and then kept: whole or not at all, however many test processes ask at the same time.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};

use crate::Unavailable;

/// Where a person can put the assets, for instance to share them between checkouts.
pub const FOLDER_VARIABLE: &str = "VM_WATCHDOG_GUEST_ASSETS";

/// The folder named `name`, which `make` fills unless an earlier run has done so from the same `recipe`.
///
/// `make` works in a folder of another name, which takes the final name when it is complete.
pub fn asset(
    name: &str,
    recipe: &str,
    make: impl FnOnce(&Path) -> Result<(), Unavailable>,
) -> Result<PathBuf, Unavailable> {
    let folder = folder();
    fs::create_dir_all(&folder).map_err(Unavailable::while_doing(folder.display()))?;
    let _held = lock(&format!("{name}.lock"))?;

    let finished = folder.join(name);
    let recipe_file = ".recipe";
    if fs::read(finished.join(recipe_file)).is_ok_and(|made_from| made_from == recipe.as_bytes()) {
        return Ok(finished);
    }
    let partial = folder.join(format!("{name}.partial"));
    for leftover in [&finished, &partial] {
        if leftover.exists() {
            fs::remove_dir_all(leftover).map_err(Unavailable::while_doing(leftover.display()))?;
        }
    }
    fs::create_dir(&partial).map_err(Unavailable::while_doing(partial.display()))?;
    make(&partial)?;
    fs::write(partial.join(recipe_file), recipe)
        .and_then(|()| fs::rename(&partial, &finished))
        .map_err(Unavailable::while_doing(finished.display()))?;
    Ok(finished)
}

/// Lanes of tests that run side by side on purpose (`.ci/run`) each have a name here.
pub const LANE_VARIABLE: &str = "VM_WATCHDOG_LANE";

/// Waits until no other test of this lane holds the machine, and holds it until dropped.
///
/// For tests whose subject is real time, and for those that load both cores. The lock is a file, so that it also works
/// between processes.
pub fn machine_to_ourselves() -> Result<Held, Unavailable> {
    let folder = folder();
    fs::create_dir_all(&folder).map_err(Unavailable::while_doing(folder.display()))?;
    let lane = env::var(LANE_VARIABLE).map(|lane| format!("-{lane}")).unwrap_or_default();
    lock(&format!("machine{lane}.lock"))
}

/// The same, once for all tests of this process and until it ends: they run beside each other.
///
/// For tests with guests, which wait most of the time, and whose bounds hold on a loaded machine.
pub fn machine_for_this_process() -> Result<(), Unavailable> {
    static HELD: OnceLock<Result<Held, Unavailable>> = OnceLock::new();
    HELD.get_or_init(machine_to_ourselves).as_ref().map(|_| ()).map_err(Clone::clone)
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Held {
    _file: File,
}

fn lock(name: &str) -> Result<Held, Unavailable> {
    let path = folder().join(name);
    let file = File::create(&path).map_err(Unavailable::while_doing(path.display()))?;
    flock(&file, FlockOperation::LockExclusive).map_err(Unavailable::while_doing(path.display()))?;
    Ok(Held { _file: file })
}

fn folder() -> PathBuf {
    match env::var_os(FOLDER_VARIABLE) {
        Some(folder) => PathBuf::from(folder),
        None => target_folder().join("guest-assets"),
    }
}

/// Cargo's target folder: the one above the running test that cargo has marked as a cache.
pub(crate) fn target_folder() -> PathBuf {
    let marked = |folder: &&Path| folder.join("CACHEDIR.TAG").exists();
    match env::current_exe().ok().as_deref().and_then(|test| test.ancestors().find(marked)) {
        Some(target) => target.to_owned(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asset_is_made_once_and_a_failed_attempt_leaves_nothing() {
        let name = "self-test-of-assets";
        let broken = asset(name, "1", |partial| {
            fs::write(partial.join("half"), "x").unwrap();
            Err(Unavailable::new("the network went away"))
        });
        assert_eq!(broken, Err(Unavailable::new("the network went away")));

        let made = asset(name, "1", |partial| {
            assert!(!partial.join("half").exists());
            fs::write(partial.join("whole"), "x").unwrap();
            Ok(())
        });
        let made = made.unwrap();
        assert!(made.join("whole").exists());
        assert_eq!(asset(name, "1", |_| panic!("made twice")).unwrap(), made);

        asset(name, "2", |_| Ok(())).unwrap();
        assert!(!made.join("whole").exists(), "another recipe makes it anew");
        fs::remove_dir_all(made).unwrap();
    }
}
