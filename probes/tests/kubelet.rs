//! What kubelet does, as a table: when a probe is attempted, and when its result changes.
//!
//! The sources are kubelet's worker (`pkg/kubelet/prober/worker.go`), its retries (`prober.go`) and the documentation of
//! the fields. Each row runs a worker in virtual time:
//!
//! - `what happens`: `start@0`, `pause@5`, `resume@5` (a pause takes no time of the VM), `reset@9`, `shutdown@9`,
//!   `stop@9`, and `answer@5` for an attempt that ends during a pause.
//! - `answers`: the outcomes of the attempts in order, and the last one for all further ones: `S`uccess, `F`ailure,
//!   `E`rror, `W`arning; `F+2.5` takes 2.5 seconds.
//! - The result has the times of the attempts, and the changes: `0 1 2 failure@2`.

use std::collections::VecDeque;
use std::time::Duration;

use vm_watchdog_devices::VmInstant;
use vm_watchdog_probes::{Attempt, Change, Handler, Outcome, Probe, ProbeKind, Worker};

use Kind::{L, R};

enum Kind {
    L,
    R,
}

/// What the row shows; liveness or readiness; the fields; what happens; the answers; how long to watch; what is seen.
type Row = (&'static str, Kind, &'static str, &'static str, &'static str, f64, &'static str);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // Times.
    ("without a delay, the first attempt is due when the VM starts", L, "", "start@0", "S", 25.0, "0 10 20"),
    ("the time of the VM need not begin at zero", L, "", "start@7", "S", 28.0, "7 17 27"),
    ("no attempt before the initial delay, then one in each period", L, "delay=5", "start@0", "S", 30.0, "5 15 25"),
    ("the initial delay may be longer than the period", L, "delay=25 period=10", "start@0", "S", 46.0, "25 35 45"),
    ("the shortest period is a second", L, "period=1", "start@0", "S", 4.0, "0 1 2 3 4"),
    ("a period of 0 is the default", L, "period=0", "start@0", "S", 11.0, "0 10"),
    ("no attempt while the VM has not started", R, "period=1", "", "S", 10.0, ""),
    ("a slow attempt within the period does not move the next one", L, "", "start@0", "S+3", 25.0, "0 10 20"),
    ("an attempt longer than the period: the next one follows at once", L, "period=1", "start@0", "S+1.5 S", 4.0, "0 1.5 2 3 4"),
    ("of several missed periods only one is made up for", L, "period=1", "start@0", "S+3.5 S", 6.0, "0 3.5 4 5 6"),
    ("attempts that are always longer than the period follow each other", L, "period=1", "start@0", "S+1.5", 5.0, "0 1.5 3 4.5"),
    ("an attempt that ends when the next one is due", L, "period=2", "start@0", "S+2", 5.0, "0 2 4"),
    // Liveness thresholds.
    ("three failures in a row fail by default", L, "", "start@0", "F", 50.0, "0 10 20 failure@20"),
    ("two failures do not", L, "", "start@0", "F F S", 50.0, "0 10 20 30 40 50"),
    ("a success between failures starts the count anew", L, "", "start@0", "F F S F F S F F F", 90.0, "0 10 20 30 40 50 60 70 80 failure@80"),
    ("a threshold of 1 fails at the first failure", L, "failures=1", "start@0", "F", 50.0, "0 failure@0"),
    ("a threshold of 5", L, "period=1 failures=5", "start@0", "F", 50.0, "0 1 2 3 4 failure@4"),
    ("the application of the public lab: period 1, threshold 3, failing from its 4th answer", L, "period=1", "start@0", "S S S F", 20.0, "0 1 2 3 4 5 failure@5"),
    ("failures count from the first attempt, before any success", L, "delay=3 period=1", "start@0", "F", 20.0, "3 4 5 failure@5"),
    ("the result changes when the last attempt ends, not when it begins", L, "period=2 failures=2 timeout=1", "start@0", "F+1", 20.0, "0 2 failure@3"),
    ("a warning is a success", L, "failures=2", "start@0", "F W F W F F", 60.0, "0 10 20 30 40 50 failure@50"),
    // On hold.
    ("after a liveness failure nothing is probed until the VM is reset", L, "period=1", "start@0 reset@60", "F F F S", 62.0, "0 1 2 failure@2 success@60 60 61 62"),
    ("after a liveness failure nothing is probed until the VM is started", L, "period=1", "start@0 stop@30 start@60", "F F F S", 62.0, "0 1 2 failure@2 success@60 60 61 62"),
    ("the initial delay starts over with a reset", L, "delay=20", "start@0 reset@25", "S", 60.0, "20 45 55"),
    ("the count starts over with a reset", L, "period=1", "start@0 reset@1.5", "F", 20.0, "0 1 1.5 2.5 3.5 failure@3.5"),
    ("a guest that fails after each reset fails each time after the delay and the threshold", L, "delay=5 period=1", "start@0 reset@10 reset@30", "F", 60.0,
        "5 6 7 failure@7 success@10 15 16 17 failure@17 success@30 35 36 37 failure@37"),
    ("a reset during the initial delay starts the delay over", L, "delay=10", "start@0 reset@8", "S", 30.0, "18 28"),
    ("an attempt that a reset interrupts does not count", L, "period=5 timeout=3 failures=1", "start@0 reset@1", "F+2 S", 8.0, "0 2 6"),
    ("a reset before the start and after the stop is none", R, "period=1", "reset@1 start@2 stop@3.5 reset@4", "S", 9.0, "2 success@2 3 failure@3.5"),
    // Readiness.
    ("a VM is not ready before its first success", R, "delay=5", "start@0", "S", 20.0, "5 success@5 15"),
    ("a VM that never succeeds is never ready, and its probe never ends", R, "", "start@0", "F", 40.0, "0 10 20 30 40"),
    ("three successes in a row by successThreshold", R, "successes=3 period=1", "start@0", "S", 5.0, "0 1 2 success@2 3 4 5"),
    ("a failure between successes starts the count anew", R, "successes=3 period=1", "start@0", "S S F S S S", 6.0, "0 1 2 3 4 5 success@5 6"),
    ("a ready VM stays ready until three failures in a row", R, "period=1", "start@0", "S F F S F F F", 7.0, "0 success@0 1 2 3 4 5 6 failure@6 7"),
    ("readiness goes and comes back by its thresholds, without any hold", R, "period=1 failures=2 successes=2", "start@0", "S S F F S S", 7.0, "0 1 success@1 2 3 failure@3 4 5 success@5 6 7"),
    ("further failures of a failed probe change nothing", R, "period=1 failures=1", "start@0", "S F F F", 5.0, "0 success@0 1 failure@1 2 3 4 5"),
    ("a reset makes the VM not ready at once", R, "delay=3", "start@0 reset@5", "S", 10.0, "3 success@3 failure@5 8 success@8"),
    // Errors: the handler could not be run.
    ("an error is tried three times in a period, and then thrown away", L, "failures=1", "start@0", "E", 25.0, "0 0 0 10 10 10 20 20 20"),
    ("an error, then a success in the same period", R, "", "start@0", "E S", 15.0, "0 0 success@0 10"),
    ("two errors, then a failure in the same period", L, "failures=1", "start@0", "E E F", 15.0, "0 0 0 failure@0"),
    ("errors do not interrupt failures in a row", L, "", "start@0", "F E E E F F", 50.0, "0 10 10 10 20 30 failure@30"),
    ("errors do not interrupt successes in a row", R, "successes=2", "start@0", "S E E E S", 30.0, "0 10 10 10 20 success@20 30"),
    ("each period has its own three tries", R, "", "start@0", "E E S E E S E E E S", 30.0, "0 0 0 success@0 10 10 10 20 20 20 30"),
    ("tries that are longer than the period are followed by the next one at once", L, "period=1", "start@0", "E+0.5 E+0.5 E+0.5 S", 3.0, "0 0.5 1 1.5 2 3"),
    // The VM pauses, shuts down, stops.
    ("a pause between attempts changes nothing", L, "", "start@0 pause@5 resume@5", "S", 25.0, "0 10 20"),
    ("no attempt while the VM is paused when one is due", L, "", "start@0 pause@10", "S", 50.0, "0"),
    ("a resumed VM is probed at the time that was due", L, "", "start@0 pause@10 resume@10", "S", 25.0, "0 10 20"),
    ("an attempt that a pause interrupts does not count, and is repeated after the pause", L, "failures=1 timeout=2", "start@0 pause@0.5 answer@0.5 resume@0.5", "F+1 S", 25.0, "0 0.5 10 20"),
    ("an attempt that is still under way after the pause is waited for", L, "failures=1 timeout=2", "start@0 pause@0.5 resume@0.5", "F+1 S", 25.0, "0 1 10 20"),
    ("two pauses during one attempt", L, "failures=1 timeout=2", "start@0 pause@0.5 resume@0.5 pause@0.7 resume@0.7", "F+1 S", 25.0, "0 1 10 20"),
    ("a pause interrupts the tries of a period, which starts over", R, "", "start@0 pause@0.5 answer@0.5 resume@0.5", "E E+1 E E E S", 25.0, "0 0 0.5 0.5 0.5 10 success@10 20"),
    ("the failures before a pause still count after it", L, "", "start@0 pause@15 resume@15", "F", 60.0, "0 10 20 failure@20"),
    ("a VM that is reset while paused starts over when it runs", L, "delay=5", "start@0 pause@7 reset@7 resume@7", "S", 30.0, "5 12 22"),
    ("a VM that is started is not paused", L, "", "start@0 pause@3 stop@3 start@4", "S", 15.0, "0 4 14"),
    ("a readiness probe fails at once when the VM stops, and probes no more", R, "period=1", "start@0 stop@3.5", "S", 60.0, "0 success@0 1 2 3 failure@3.5"),
    ("for a liveness probe a stop is no failure", L, "period=1", "start@0 stop@3.5", "S", 60.0, "0 1 2 3"),
    ("an attempt that the stop interrupts does not count", R, "failures=1 successes=1 timeout=2", "start@0 stop@0.5", "S+1", 60.0, "0"),
    ("a VM that starts again is not ready before its successes", R, "delay=2 successes=2 period=1", "start@0 stop@5.5 start@9", "S", 13.0, "2 3 success@3 4 5 failure@5.5 11 12 success@12 13"),
    ("a VM that shuts down on purpose does not fail its liveness", L, "period=1", "start@0 shutdown@1.5 stop@8", "S S F", 60.0, "0 1"),
    ("an attempt that the shutdown interrupts does not count", L, "failures=1 timeout=2", "start@0 shutdown@0.5 stop@8", "F+1", 60.0, "0"),
    ("a VM that shuts down on purpose is probed for readiness until it stops", R, "period=1", "start@0 shutdown@1.5 stop@5.5", "S S F", 60.0, "0 success@0 1 2 3 4 failure@4 5"),
    ("a guest that reboots instead of shutting down is probed again", L, "period=1 delay=2", "start@0 shutdown@3.5 reset@8", "S", 11.0, "2 3 10 11"),
];

#[test]
fn a_worker_does_what_kubelet_does() {
    assert!(TABLE.len() >= 40);
    let failed: Vec<String> = TABLE
        .iter()
        .filter_map(|(name, kind, fields, happenings, answers, until, expected)| {
            let seen = Simulation::new(kind, fields, happenings, answers).run(*until);
            let differs = seen != expected.split_whitespace().collect::<Vec<_>>().join(" ");
            differs.then(|| format!("{name}\n   expected: {expected}\n       seen: {seen}"))
        })
        .collect();
    assert!(failed.is_empty(), "{} of {} rows:\n{}", failed.len(), TABLE.len(), failed.join("\n"));
}

struct Simulation {
    worker: Worker,
    happenings: VecDeque<(VmInstant, &'static str)>,
    answers: VecDeque<(Outcome, Duration)>,
    under_way: Option<(VmInstant, Attempt, Outcome)>,
    seen: Vec<String>,
}

impl Simulation {
    fn new(kind: &Kind, fields: &str, happenings: &'static str, answers: &str) -> Self {
        let kind = match kind {
            Kind::L => ProbeKind::Liveness,
            Kind::R => ProbeKind::Readiness,
        };
        let happenings = happenings.split_whitespace().map(|word| {
            let (what, at) = word.split_once('@').expect("WHAT@TIME");
            (VmInstant::ZERO + seconds(at), what)
        });
        Self {
            worker: Worker::new(kind, &probe(fields)).expect("a valid probe"),
            happenings: happenings.collect(),
            answers: answers.split_whitespace().map(answer).collect(),
            under_way: None,
            seen: Vec::new(),
        }
    }

    fn run(mut self, until: f64) -> String {
        let until = VmInstant::ZERO + Duration::from_secs_f64(until);
        let mut now = VmInstant::ZERO;
        loop {
            let end = self.under_way.as_ref().map(|(end, ..)| *end);
            let happening = self.happenings.front().map(|(at, _)| *at);
            let Some(next) = [end, happening, self.worker.poll_at()].into_iter().flatten().min() else { break };
            // What is due since an earlier time happens now.
            now = now.max(next);
            if now > until {
                break;
            }
            if happening == Some(next) {
                let (_, what) = self.happenings.pop_front().expect("it happens now");
                self.happen(now, what);
            } else if end == Some(next) {
                self.end_attempt(now);
            } else {
                self.begin_attempt(now);
            }
        }
        self.seen.join(" ")
    }

    fn happen(&mut self, now: VmInstant, what: &str) {
        let change = match what {
            "start" => self.worker.vm_started(now),
            "reset" => self.worker.vm_reset(now),
            "stop" => self.worker.vm_stopped(),
            "pause" => {
                self.worker.vm_paused(now);
                None
            }
            "resume" => {
                self.worker.vm_resumed();
                None
            }
            "shutdown" => {
                self.worker.vm_shutting_down();
                None
            }
            "answer" => return self.end_attempt(now),
            other => panic!("nothing is called {other}"),
        };
        self.note(now, change);
    }

    fn begin_attempt(&mut self, now: VmInstant) {
        let attempt = self.worker.poll(now).expect("poll_at says that an attempt is due");
        self.seen.push(time(now));
        assert!(self.under_way.is_none(), "attempts overlap at {}", time(now));
        let (outcome, takes) = match self.answers.len() {
            0 => panic!("a row with attempts has answers"),
            1 => self.answers[0].clone(),
            _ => self.answers.pop_front().expect("there are several"),
        };
        self.under_way = Some((now + takes, attempt, outcome));
    }

    fn end_attempt(&mut self, now: VmInstant) {
        let (_, attempt, outcome) = self.under_way.take().expect("an attempt is under way");
        let completed = self.worker.complete(now, attempt, outcome);
        self.note(now, completed.change);
    }

    fn note(&mut self, now: VmInstant, change: Option<Change>) {
        self.seen.extend(change.map(|change| format!("{}@{}", change.result, time(now))));
    }
}

fn probe(fields: &str) -> Probe {
    let mut probe = Probe::new(Handler::GuestAgentPing);
    for word in fields.split_whitespace() {
        let (name, value) = word.split_once('=').expect("NAME=VALUE");
        let field = match name {
            "delay" => &mut probe.initial_delay_s,
            "period" => &mut probe.period_s,
            "timeout" => &mut probe.timeout_s,
            "failures" => &mut probe.failure_threshold,
            "successes" => &mut probe.success_threshold,
            other => panic!("no field is called {other}"),
        };
        *field = value.parse().expect("a number");
    }
    probe
}

fn answer(word: &str) -> (Outcome, Duration) {
    let (outcome, takes) = word.split_once('+').unwrap_or((word, "0"));
    let outcome = match outcome {
        "S" => Outcome::Success,
        "W" => Outcome::Warning("a redirect to another host".to_owned()),
        "F" => Outcome::Failure("connection refused".to_owned()),
        "E" => Outcome::Error("too many open files".to_owned()),
        other => panic!("no outcome is called {other}"),
    };
    (outcome, seconds(takes))
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs_f64(text.parse().expect("a number of seconds"))
}

fn time(at: VmInstant) -> String {
    (Duration::from_nanos(at.as_nanos()).as_secs_f64()).to_string()
}
