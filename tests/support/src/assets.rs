//! Folders that the tests create once and keep. Creation is atomic, also when several test processes run it at once.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};

use crate::Unavailable;

/// Overrides the folder of the assets, for instance to share them between checkouts.
pub const FOLDER_VARIABLE: &str = "VM_WATCHDOG_GUEST_ASSETS";

/// Returns the folder `name`. `make` fills it, unless an earlier run has filled it from the same `recipe`.
///
/// `make` fills a temporary folder, which is renamed when it is complete.
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

/// The name of the lane that runs the tests. `.ci/run` runs several lanes in parallel.
pub const LANE_VARIABLE: &str = "VM_WATCHDOG_LANE";

/// Waits until no other test of this lane holds the machine's lock, and holds it until the result is dropped.
///
/// For tests of real time, and for tests that load both cores. The lock is a file, so it also excludes other processes.
pub fn machine_to_ourselves() -> Result<Held, Unavailable> {
    let folder = folder();
    fs::create_dir_all(&folder).map_err(Unavailable::while_doing(folder.display()))?;
    let lane = env::var(LANE_VARIABLE).map(|lane| format!("-{lane}")).unwrap_or_default();
    lock(&format!("machine{lane}.lock"))
}

/// Takes the same lock once for all tests of this process, until it ends. Tests of the process run in parallel.
///
/// For tests with guests: they are idle most of the time, and their limits allow for a loaded machine.
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

/// Cargo's target folder: the parent of the running test that has cargo's cache mark.
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
    fn an_asset_is_made_once_and_a_failed_attempt_leaves_no_folder() {
        let name = "self-test-of-assets";
        let broken = asset(name, "1", |partial| {
            fs::write(partial.join("half"), "x").unwrap();
            Err(Unavailable::new("no network"))
        });
        assert_eq!(broken, Err(Unavailable::new("no network")));

        let made = asset(name, "1", |partial| {
            assert!(!partial.join("half").exists());
            fs::write(partial.join("whole"), "x").unwrap();
            Ok(())
        });
        let made = made.unwrap();
        assert!(made.join("whole").exists());
        assert_eq!(asset(name, "1", |_| panic!("made twice")).unwrap(), made);

        asset(name, "2", |_| Ok(())).unwrap();
        assert!(!made.join("whole").exists(), "a new recipe replaces the folder");
        fs::remove_dir_all(made).unwrap();
    }
}
