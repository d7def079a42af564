//! The disassembler of ACPI tables, `iasl`, from the package `acpica-tools` of this machine's Debian release.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::debian::{Keep, Packages, Suite};
use crate::{Unavailable, assets};

const PACKAGES: Packages = Packages {
    folder: "acpica-tools",
    suite: Suite::Machine,
    architecture: "amd64",
    install: &["acpica-tools"],
    // The C library is this machine's own, which is of the same release.
    keep: Keep::NamesStartingWith(&["acpica-tools"]),
};

/// The unpacked tools.
#[derive(Clone, Debug)]
pub struct Acpica {
    root: PathBuf,
}

/// What the disassembler says of a table.
#[derive(Clone, Debug)]
pub struct Disassembly {
    /// The fields in the order of the table: name, and value as printed, without its meaning.
    pub fields: Vec<(String, String)>,
    /// The lines of the program and of the disassembled table with an error or a warning, and its status if it failed.
    pub complaints: Vec<String>,
}

impl Acpica {
    /// Fetches the tools on first use.
    pub fn fetch() -> Result<Self, Unavailable> {
        Ok(Self { root: PACKAGES.fetch()? })
    }

    /// Disassembles a table with `iasl -d`, in a temporary folder with this name.
    pub fn disassemble(&self, name: &str, table: &[u8]) -> Result<Disassembly, Unavailable> {
        let folder = assets::target_folder().join(format!("{name}-{}", std::process::id()));
        self.disassemble_in(&folder, table).map_err(Unavailable::while_doing(folder.display()))
    }

    fn disassemble_in(&self, folder: &Path, table: &[u8]) -> io::Result<Disassembly> {
        fs::create_dir_all(folder)?;
        let (binary, text) = (folder.join("table.dat"), folder.join("table.dsl"));
        fs::write(&binary, table)?;
        let output = Command::new(self.root.join("usr/bin/iasl")).arg("-d").arg(&binary).output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        // There is none of a table that it does not accept.
        let text = fs::read_to_string(text).unwrap_or_default();
        fs::remove_dir_all(folder)?;
        let mut disassembly = Disassembly::of(&format!("{said}\n{text}"));
        if !output.status.success() {
            disassembly.complaints.push(output.status.to_string());
        }
        Ok(disassembly)
    }
}

impl Disassembly {
    fn of(lines: &str) -> Self {
        let complains = |line: &&str| {
            let line = line.to_lowercase();
            ["error", "warning", "invalid", "unknown", "incorrect"].iter().any(|word| line.contains(word))
        };
        // [024h 0036   4]     Header Length : 00000020
        let field = |line: &str| {
            let (name, value) = line.strip_prefix('[')?.split_once(']')?.1.split_once(" : ")?;
            let value = value.split(" [").next().unwrap_or_default().trim().trim_matches('"');
            Some((name.trim().to_owned(), value.to_owned()))
        };
        Self {
            fields: lines.lines().filter_map(field).collect(),
            complaints: lines.lines().filter(complains).map(str::to_owned).collect(),
        }
    }

    /// The values of the fields with this name, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str()).collect()
    }
}
