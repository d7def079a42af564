//! Adds the device to the XML of a domain. Every byte stays as it is, except those of our options from an earlier call:
//! KubeVirt calls the hook several times, also with the result of the last call.

use std::ops::Range;
use std::path::Path;

use crate::kubevirt::commandline::{Options, choose};
use crate::kubevirt::domain::{Commandline, Domain, QEMU, QemuOption};
use crate::kubevirt::error::HookError;

/// The XML with the device, whose sockets QEMU sees in `folder`.
///
/// # Errors
///
/// The place of what has no room for the device, or is no domain.
pub fn with_device(xml: &str, folder: &Path) -> Result<String, HookError> {
    let domain = Domain::parse(xml)?;
    if let Some((_, offset)) = domain.watchdogs.iter().find(|(model, _)| model == "i6300esb") {
        let message = "the domain has an i6300esb already: remove it, or the annotation vm-watchdog/i6300esb";
        return Err(HookError::domain(xml, *offset, message));
    }
    let options = Options::of(&domain, folder)?;
    let mut ours: Vec<&QemuOption> = Vec::new();
    let (mut used, mut earlier) = (domain.slots, None);
    for commandline in &domain.commandlines {
        let mut words = &commandline.options[..];
        while let [option, value, rest @ ..] = words {
            let slot = options.slot(&option.value, &value.value);
            if options.are_ours(&option.value, &value.value) {
                ours.extend([option, value]);
                earlier = earlier.or(slot);
                words = rest;
            } else {
                slot.into_iter().for_each(|slot| used[slot] = true);
                words = &words[1..];
            }
        }
    }
    let slot = choose(&used, earlier).ok_or_else(|| {
        HookError::domain(xml, domain.attributes_at, "the first PCI bus has no free slot for the watchdog")
    })?;
    let words = options.words(slot);
    if ours.iter().map(|option| &option.value).eq(&words) {
        return Ok(xml.to_owned());
    }
    let mut edits: Vec<(Range<usize>, String)> =
        ours.iter().map(|option| (option.range.clone(), String::new())).collect();
    match domain.commandlines.first() {
        Some(commandline) => edits.push(into(commandline, xml, &words)),
        None => edits.extend(anew(&domain, &words)),
    }
    Ok(apply(xml, edits))
}

/// The options after those of an element that is there, and before its variables, as libvirt writes them.
fn into(commandline: &Commandline, xml: &str, words: &[String]) -> (Range<usize>, String) {
    let text: String = words.iter().map(|word| element(commandline.prefix(), word)).collect();
    if commandline.is_empty {
        let tag = &xml[commandline.start.clone()];
        let open = tag.strip_suffix("/>").unwrap_or(tag).trim_end();
        return (commandline.start.clone(), format!("{open}>{text}</{}>", commandline.name));
    }
    let at = commandline.options.last().map_or(commandline.start.end, |option| option.range.end);
    (at..at, text)
}

/// An element at the end of the domain, and the declaration of its namespace if there is none.
fn anew(domain: &Domain<'_>, words: &[String]) -> Vec<(Range<usize>, String)> {
    let declared = domain.prefixes.iter().find(|(prefix, is_qemu)| *is_qemu && !prefix.is_empty());
    let is_taken = |name: &String| domain.prefixes.iter().any(|(prefix, _)| prefix == name);
    let mut names = std::iter::once("qemu".to_owned()).chain((1..).map(|number| format!("qemu{number}")));
    let (prefix, declaration) = match declared {
        Some((prefix, _)) => (prefix.clone(), None),
        None => {
            let prefix = names.find(|name| !is_taken(name)).unwrap_or_default();
            let text = format!(" xmlns:{prefix}='{QEMU}'");
            (prefix, Some((domain.attributes_at..domain.attributes_at, text)))
        }
    };
    let options: String = words.iter().map(|word| format!("    {}\n", element(&format!("{prefix}:"), word))).collect();
    let text = format!("  <{prefix}:commandline>\n{options}  </{prefix}:commandline>\n");
    [(domain.end..domain.end, text)].into_iter().chain(declaration).collect()
}

/// An option with its prefix. JSON has double quotes, so the attribute has single ones.
fn element(prefix: &str, word: &str) -> String {
    let word = word.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;");
    format!("<{prefix}arg value='{word}'/>")
}

/// Replaces ranges that do not overlap.
fn apply(xml: &str, mut edits: Vec<(Range<usize>, String)>) -> String {
    // What is inserted at the end of a range that is removed comes after it.
    edits.sort_by_key(|(range, _)| (range.start, range.end));
    let (mut text, mut at) = (String::with_capacity(xml.len() + 1024), 0);
    for (range, replacement) in edits {
        text.push_str(&xml[at..range.start]);
        text.push_str(&replacement);
        at = range.end;
    }
    text + &xml[at..]
}
