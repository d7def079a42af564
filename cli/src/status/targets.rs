//! Which VMs there are: a folder for each of them, with the socket of its server.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::status::document::Text;

/// The name of the socket in the folder of a VM.
const SOCKET: &str = "metrics";

/// A VM, and where its server is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The name of its folder. A server does not name its VM, because it could take the name of another one.
    pub name: Text,
    pub socket: PathBuf,
}

/// The VMs of these names or sockets, or every one that has a socket in `folder`.
///
/// # Errors
///
/// The folder cannot be read. A folder that is not there has no VM.
pub fn targets(folder: &Path, named: &[PathBuf]) -> io::Result<Vec<Target>> {
    if !named.is_empty() {
        return Ok(named.iter().map(|named| target(folder, named)).collect());
    }
    let mut targets = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(targets),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let socket = entry.path().join(SOCKET);
        // A folder that may not be searched has a row that says so.
        let is_there = match fs::symlink_metadata(&socket) {
            Ok(_) => true,
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        };
        if is_there {
            targets.push(Target { name: text(&entry.file_name()), socket });
        }
    }
    targets.sort();
    Ok(targets)
}

/// The VM of a name, or of a path, which has a slash.
fn target(folder: &Path, named: &Path) -> Target {
    if !named.as_os_str().as_encoded_bytes().contains(&b'/') {
        return Target { name: text(named.as_os_str()), socket: folder.join(named).join(SOCKET) };
    }
    let folder_of_vm = named.parent().and_then(Path::file_name);
    let name = folder_of_vm.filter(|_| named.file_name() == Some(OsStr::new(SOCKET)));
    Target { name: text(name.unwrap_or(named.as_os_str())), socket: named.to_owned() }
}

fn text(name: &OsStr) -> Text {
    Text::new(&name.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_folder_and_a_path_is_a_socket() {
        let folder = Path::new("/run/vm-watchdog");
        for (named, name, socket) in [
            ("web", "web", "/run/vm-watchdog/web/metrics"),
            ("/run/vm-watchdog/web/metrics", "web", "/run/vm-watchdog/web/metrics"),
            ("./m", "./m", "./m"),
            ("/metrics", "/metrics", "/metrics"),
        ] {
            let expected = Target { name: name.into(), socket: socket.into() };
            assert_eq!(targets(folder, &[named.into()]).unwrap(), [expected]);
        }
    }

    #[test]
    fn a_folder_with_a_socket_is_a_vm() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b", "a", "empty"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in ["a/metrics", "b/metrics", "file"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let names: Vec<_> = targets(folder.path(), &[]).unwrap().into_iter().map(|target| target.name).collect();
        assert_eq!(names, [Text::new("a"), Text::new("b")]);
        assert_eq!(targets(&folder.path().join("none"), &[]).unwrap(), []);
        assert!(targets(&folder.path().join("file"), &[]).is_err());
    }
}
