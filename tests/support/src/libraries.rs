//! The libraries of unpacked packages, and the loader that runs a program with them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Unavailable;

/// The folders of libraries below the root of unpacked packages for amd64.
#[derive(Clone, Debug)]
pub struct Libraries {
    /// If /usr is not merged, the C library and its loader are in /lib.
    places: [PathBuf; 2],
}

impl Libraries {
    /// The libraries of the packages that are unpacked in `root`.
    pub fn of(root: &Path) -> Self {
        Self { places: ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|place| root.join(place)) }
    }

    /// The program that loads other programs.
    pub fn loader(&self) -> PathBuf {
        let mut loaders = self.places.iter().map(|place| place.join("ld-linux-x86-64.so.2"));
        loaders.rfind(|loader| loader.exists()).unwrap_or_else(|| self.places[0].clone())
    }

    /// The loader's argument `--library-path`.
    pub fn search_path(&self) -> String {
        self.places.each_ref().map(|place| place.display().to_string()).join(":")
    }

    /// The libraries that a program is linked with, directly or not, and the loader.
    pub fn needed_by(&self, program: &Path) -> Result<Vec<PathBuf>, Unavailable> {
        let mut loader = Command::new(self.loader());
        loader.args(["--library-path", &self.search_path(), "--list"]).arg(program);
        let listing = loader.output().map_err(Unavailable::while_doing(self.loader().display()))?;
        let lines = String::from_utf8_lossy(&listing.stdout).into_owned();
        if !listing.status.success() || lines.contains("not found") {
            let message = String::from_utf8_lossy(&listing.stderr);
            return Err(Unavailable::new(format!("libraries of {}: {lines}{message}", program.display())));
        }
        // The kernel's own library has no path.
        let path = |line: &str| Some(PathBuf::from(line.split_once(" => ")?.1.rsplit_once(" (")?.0));
        Ok(lines.lines().filter_map(path).collect())
    }
}
