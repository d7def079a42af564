//! The interrupt line: which level it was last set to, and whether it has to be set again.

/// What is known of the line. The level that the device wants comes with each question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The level last set, None if that is not known.
    driven: Option<bool>,
    /// The call in progress.
    setting: Option<Setting>,
    /// The last call failed. The next access or expiry tries again.
    has_failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    level: bool,
    /// Something has happened to the line meanwhile, so that its level is not known after the call.
    is_outdated: bool,
}

impl Line {
    /// A line that is at `level`.
    pub fn at(level: bool) -> Self {
        Self { driven: Some(level), setting: None, has_failed: false }
    }

    /// Whether the line is to be set to `wanted`.
    pub fn needs(&self, wanted: bool) -> bool {
        self.setting.is_none() && !self.has_failed && self.driven != Some(wanted)
    }

    /// The line is being set to `level` from here on, until [`finished`](Self::finished) or
    /// [`put_back`](Self::put_back).
    pub fn begin(&mut self, level: bool) {
        self.setting = Some(Setting { level, is_outdated: false });
    }

    /// The line was not set after all.
    pub fn put_back(&mut self) {
        self.setting = None;
    }

    /// Notes the outcome of the call.
    pub fn finished(&mut self, is_set: bool) {
        let setting = self.setting.take().filter(|setting| is_set && !setting.is_outdated);
        self.driven = setting.map(|setting| setting.level);
        self.has_failed = !is_set;
    }

    /// Tries a line again that has failed.
    pub fn try_again(&mut self) {
        self.has_failed = false;
    }

    /// The level is no longer known to be what it was set to: the end of an interrupt has lowered it.
    pub fn forget_level(&mut self) {
        *self = Self { driven: None, setting: self.outdated_setting(), has_failed: false };
    }

    /// The VM's interrupt controller was restored with the line at `level`. A call in progress may come after that,
    /// so the line is then set once more.
    pub fn restore(&mut self, level: bool) {
        *self = Self { driven: Some(level), setting: self.outdated_setting(), has_failed: false };
    }

    fn outdated_setting(&self) -> Option<Setting> {
        self.setting.map(|setting| Setting { is_outdated: true, ..setting })
    }

    /// The level that the VM's interrupt controller has, None if that is not known. A call in progress counts as done.
    pub fn driven(&self) -> Option<bool> {
        match self.setting {
            Some(Setting { is_outdated: true, .. }) => None,
            Some(Setting { level, .. }) => Some(level),
            None => self.driven,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_set_once_for_each_change() {
        let mut line = Line::at(false);
        assert!(!line.needs(false));
        assert!(line.needs(true));
        line.begin(true);
        assert!(!line.needs(false), "one thread sets it at a time");
        line.finished(true);
        assert!(!line.needs(true));
        assert!(line.needs(false));
    }

    #[test]
    fn a_line_that_fails_is_not_tried_again_until_something_happens() {
        let mut line = Line::at(false);
        line.begin(true);
        line.finished(false);
        assert!(!line.needs(true) && !line.needs(false));
        line.try_again();
        assert!(line.needs(true) && line.needs(false), "its level is not known");
    }

    #[test]
    fn a_line_that_was_not_set_after_all_has_its_old_level() {
        let mut line = Line::at(false);
        line.begin(true);
        assert_eq!(line.driven(), Some(true));
        line.put_back();
        assert_eq!(line.driven(), Some(false));
        assert!(line.needs(true));
    }

    #[test]
    fn an_end_of_interrupt_during_the_call_has_the_line_set_again() {
        let mut line = Line::at(false);
        line.begin(true);
        line.forget_level();
        assert!(!line.needs(false) && !line.needs(true), "one thread sets it at a time");
        line.finished(true);
        assert!(line.needs(true));
    }

    #[test]
    fn a_restore_during_the_call_has_the_restored_level_set() {
        let mut line = Line::at(false);
        line.begin(true);
        line.restore(false);
        assert!(!line.needs(false) && !line.needs(true), "one thread sets it at a time");
        line.finished(true);
        assert!(line.needs(false), "the call in progress may have raised the line after the restore");
        line.restore(false);
        assert!(!line.needs(false), "no edge without a call in progress");
    }
}
