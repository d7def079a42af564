//! The last action of a watchdog or of the liveness probe, for `GET /status`.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use vm_watchdog::{Action, Event, HandlerError, Stage};

use crate::status::document::{ActionOutcome, ActionStatus, Text, millis};

/// What the last action was, and what has become of it.
#[derive(Debug, Default)]
pub struct LastAction(Mutex<Option<Known>>);

#[derive(Clone, Debug)]
struct Known {
    action: Action,
    stage: Stage,
    outcome: ActionOutcome,
    reason: Option<Text>,
    at: Instant,
}

impl LastAction {
    /// An action begins. A retry is known as failed until it has succeeded.
    pub fn started(&self, event: &Event) {
        if event.attempt == 1 {
            self.set(event, ActionOutcome::Started, None);
        }
    }

    /// It has ended.
    pub fn ended(&self, event: &Event, outcome: &Result<(), HandlerError>) {
        match outcome {
            Ok(()) => self.set(event, ActionOutcome::Performed, None),
            Err(error) => self.set(event, ActionOutcome::Failed, Some(Text::new(&error.to_string()))),
        }
    }

    /// It is delayed by the rate of the actions.
    pub fn delayed(&self, event: &Event) {
        self.set(event, ActionOutcome::Delayed, None);
    }

    pub fn status(&self) -> Option<ActionStatus> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.map(|Known { action, stage, outcome, reason, at }| ActionStatus {
            action: action.as_str().into(),
            stage: Text::new(&stage.to_string()),
            outcome,
            reason,
            age_ms: millis(at.elapsed()),
        })
    }

    fn set(&self, event: &Event, outcome: ActionOutcome, reason: Option<Text>) {
        let known = Known { action: event.action, stage: event.stage, outcome, reason, at: Instant::now() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }
}
