//! Interleaved measurements: in every round each row runs one batch, so that a noisy moment of the machine hits all rows
//! alike. A row's figure is the median of its rounds, and a ratio the median of the ratios of the rounds.

use std::time::{Duration, Instant};

/// How long a batch takes.
const BATCH: Duration = Duration::from_millis(2);
/// How many batches a row has.
const ROUNDS: usize = 51;

/// An operation to measure.
pub struct Row {
    name: String,
    run: Box<dyn FnMut(u32) -> Duration>,
}

impl Row {
    /// An operation of this thread.
    pub fn new(name: &str, mut operation: impl FnMut() + 'static) -> Self {
        Self::timed(name, move |times| {
            let started = Instant::now();
            for _ in 0..times {
                operation();
            }
            started.elapsed()
        })
    }

    /// An operation that measures itself: it runs so many times, and returns how long that took.
    pub fn timed(name: &str, run: impl FnMut(u32) -> Duration + 'static) -> Self {
        Self { name: name.to_owned(), run: Box::new(run) }
    }

    /// How many operations take about as long as a batch.
    fn calibrate(&mut self) -> u32 {
        let mut times = 1;
        loop {
            let took = (self.run)(times);
            if took >= BATCH / 4 || times > 1 << 24 {
                let batch = BATCH.as_nanos() * u128::from(times) / took.as_nanos().max(1);
                return u32::try_from(batch).unwrap_or(u32::MAX).max(1);
            }
            times *= 2;
        }
    }
}

/// What was measured of a row: nanoseconds of one operation in each round.
pub struct Measured {
    pub name: String,
    pub nanos: Vec<f64>,
}

/// Measures the rows in turns.
pub fn in_turns(mut rows: Vec<Row>) -> Vec<Measured> {
    let times: Vec<u32> = rows.iter_mut().map(Row::calibrate).collect();
    let mut measured: Vec<_> =
        rows.iter().map(|row| Measured { name: row.name.clone(), nanos: Vec::with_capacity(ROUNDS) }).collect();
    for _ in 0..ROUNDS {
        for ((row, &times), measured) in rows.iter_mut().zip(&times).zip(&mut measured) {
            measured.nanos.push((row.run)(times).as_nanos() as f64 / f64::from(times));
        }
    }
    measured
}

/// Prints the rows, each beside the one called `reference`.
pub fn print(title: &str, reference: &str, measured: &[Measured]) {
    let base = measured.iter().find(|row| row.name == reference).expect("a row of that name");
    println!("\n| {title} | median | middle half | x {reference} |\n|---|---|---|---|");
    for row in measured {
        let ratios = row.nanos.iter().zip(&base.nanos).map(|(nanos, base)| nanos / base).collect();
        let [quarter, half, three_quarters] = [0.25, 0.5, 0.75].map(|part| quantile(&row.nanos, part));
        let ratio = median(ratios);
        println!("| {} | {} | {} to {} | {ratio:.2} |", row.name, time(half), time(quarter), time(three_quarters));
    }
}

pub fn median(values: Vec<f64>) -> f64 {
    quantile(&values, 0.5)
}

/// The value below which this part of the values lies.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

/// Nanoseconds with three digits, in the unit that suits them.
pub fn time(nanos: f64) -> String {
    let (value, unit) = match nanos {
        ..1e3 => (nanos, "ns"),
        ..1e6 => (nanos / 1e3, "us"),
        ..1e9 => (nanos / 1e6, "ms"),
        _ => (nanos / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}
