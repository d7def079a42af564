//! Debian packages without root: apt with a private configuration fetches and verifies them, and `dpkg-deb` unpacks
//! them.
//!
//! Mirror, proxies and other network settings are those of this machine's apt. Signatures are checked with the keys
//! that the machine trusts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Unavailable, assets};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Limit for one run of apt, in seconds. If a mirror hangs, the test is skipped.
const APT_LIMIT: &str = "600";

/// The Debian suite of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// The release that this machine runs.
    Machine,
    /// Debian 13, whatever this machine runs.
    Trixie,
    /// The next release, with newer programs.
    Testing,
}

/// Packages that are unpacked together into one folder.
#[derive(Clone, Copy, Debug)]
pub struct Packages {
    /// The name of the folder.
    pub folder: &'static str,
    /// Their suite.
    pub suite: Suite,
    /// Debian's name for the architecture.
    pub architecture: &'static str,
    /// The packages to install; their dependencies are added.
    pub install: &'static [&'static str],
    /// The packages to unpack, of those and their dependencies. A folder that is not booted needs only some of them.
    pub keep: Keep,
}

/// Which packages of an installation to keep.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    /// All packages.
    Everything,
    /// Packages whose names start with one of these.
    NamesStartingWith(&'static [&'static str]),
}

impl Packages {
    /// Returns the folder with the unpacked packages. Fetches them on first use.
    pub fn fetch(&self) -> Result<PathBuf, Unavailable> {
        assets::asset(self.folder, &format!("{self:?}"), |folder| self.fetch_into(folder))
    }

    fn fetch_into(&self, folder: &Path) -> Result<(), Unavailable> {
        let apt_folder = folder.join("apt");
        let apt = Apt::private(&apt_folder, self)?;
        apt.get(&["update"])?;
        let plan = apt.get(&[&["install", "--simulate"], self.install].concat())?;
        let wanted: Vec<&str> = plan
            .lines()
            .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next())
            .filter(|name| self.keep.includes(name))
            .collect();
        apt.get(&[&["download"], &wanted[..]].concat())?;
        for archive in apt.downloaded()? {
            run(Command::new("dpkg-deb").arg("--extract").arg(archive).arg(folder))?;
        }
        fs::remove_dir_all(&apt_folder).map_err(Unavailable::while_doing(apt_folder.display()))
    }
}

impl Keep {
    fn includes(self, name: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::NamesStartingWith(starts) => starts.iter().any(|start| name.starts_with(start)),
        }
    }
}

/// An apt with its configuration, lists and downloads in a private folder, and no installed package.
struct Apt {
    configuration: PathBuf,
    downloads: PathBuf,
}

impl Apt {
    fn private(folder: &Path, packages: &Packages) -> Result<Self, Unavailable> {
        let release = machine_release()?;
        let mirror = machine_mirror(&release)?;
        let suite = match packages.suite {
            Suite::Machine => &release,
            Suite::Trixie => "trixie",
            Suite::Testing => "testing",
        };
        let signed_by = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let source = format!("deb {signed_by}{mirror} {suite} main\n");

        let downloads = folder.join("downloads");
        let configuration = folder.join("apt.conf");
        let content = format!(
            r#"{acquire}
Acquire::Retries "3";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"#,
            acquire = machine_settings("Acquire::")?,
            architecture = packages.architecture,
            folder = folder.display(),
        );
        (|| {
            for part in ["state/lists/partial", "cache/archives/partial", "downloads"] {
                fs::create_dir_all(folder.join(part))?;
            }
            fs::write(folder.join("sources.list"), source)?;
            fs::write(folder.join("status"), "")?;
            fs::write(&configuration, content)
        })()
        .map_err(Unavailable::while_doing(folder.display()))?;
        Ok(Self { configuration, downloads })
    }

    fn get(&self, arguments: &[&str]) -> Result<String, Unavailable> {
        run(Command::new("timeout")
            .args(["--kill-after=5", APT_LIMIT, "apt-get", "--quiet", "--yes"])
            .args(arguments)
            .env("APT_CONFIG", &self.configuration)
            .current_dir(&self.downloads))
    }

    fn downloaded(&self) -> Result<Vec<PathBuf>, Unavailable> {
        fs::read_dir(&self.downloads)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(Unavailable::while_doing(self.downloads.display()))
    }
}

/// The code name of the Debian release that this machine runs.
fn machine_release() -> Result<String, Unavailable> {
    let path = "/etc/os-release";
    let text = fs::read_to_string(path).map_err(Unavailable::while_doing(path))?;
    let field = |name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_matches('"').to_owned()));
    match (field("ID=").as_deref(), field("VERSION_CODENAME=")) {
        (Some("debian"), Some(release)) => Ok(release),
        (id, _) => Err(Unavailable::new(format!(
            "guests come from Debian's packages, and this machine runs {}",
            id.unwrap_or("an unknown system")
        ))),
    }
}

/// The mirror of that release in this machine's apt configuration.
fn machine_mirror(release: &str) -> Result<String, Unavailable> {
    let format = "--format=$(RELEASE) $(COMPONENT) $(REPO_URI)";
    let targets = run(Command::new("apt-get").args(["indextargets", format]))?;
    targets
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{release} main ")))
        .map(str::to_owned)
        .ok_or_else(|| Unavailable::new(format!("this machine's apt has no source for {release} main")))
}

/// This machine's settings of apt below `section`, as a configuration file.
fn machine_settings(section: &str) -> Result<String, Unavailable> {
    let dump = run(Command::new("apt-config").arg("dump"))?;
    Ok(dump.lines().filter(|line| line.starts_with(section)).collect::<Vec<_>>().join("\n"))
}

/// Runs a program that must succeed, and returns its output.
fn run(command: &mut Command) -> Result<String, Unavailable> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C").output().map_err(Unavailable::while_doing(&name))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint: Vec<&str> = complaint.lines().filter(|line| !line.starts_with("W: ")).collect();
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    Err(Unavailable::new(format!("{name} {}: {}: {}", arguments.join(" "), output.status, complaint.join(" "))))
}
