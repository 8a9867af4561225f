//! Contenders for one thing, in turns, and what is wanted of the last of them.

use std::time::Duration;

use crate::measure::median;

/// Whether something that was wanted was reached, and how.
pub(crate) type Target = (bool, String);

/// What is wanted of a contender, held against the first one.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// At least this part of its speed.
    Speed(f64),
    /// At most so many times its time.
    Time(f64),
}

/// One table: the first contender is what the others are held against.
pub(crate) struct Tally {
    title: String,
    rows: Vec<Contender>,
}

struct Contender {
    name: String,
    goal: Option<Goal>,
    samples: Vec<Duration>,
}

impl Tally {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), rows: Vec::new() }
    }

    /// One more sample; `goal` stands with the name's first.
    pub(crate) fn add(&mut self, name: &str, goal: Option<Goal>, sample: Duration) {
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.samples.push(sample),
            None => {
                self.rows.push(Contender { name: name.to_owned(), goal, samples: vec![sample] });
            }
        }
    }

    pub(crate) fn print(&self) {
        println!("\n{}:\n", self.title);
        println!("| what | s | time, in the first's |");
        println!("|---|---|---|");
        let first = self.rows.first().map(Contender::median).unwrap_or_default();
        for row in &self.rows {
            let range = (row.samples.iter().min(), row.samples.iter().max());
            let (least, most) =
                (range.0.copied().unwrap_or_default(), range.1.copied().unwrap_or_default());
            println!(
                "| {} | {} ({} to {}) | {:.2} |",
                row.name,
                shown(row.median()),
                shown(least),
                shown(most),
                row.median().as_secs_f64() / first.as_secs_f64(),
            );
        }
    }

    pub(crate) fn targets(&self) -> impl Iterator<Item = Target> {
        let first = self.rows.first().map(Contender::median).unwrap_or_default().as_secs_f64();
        self.rows.iter().filter_map(move |row| {
            let time = row.median().as_secs_f64() / first;
            let what = format!("{}, {}", self.title, row.name);
            Some(match row.goal? {
                Goal::Speed(least) => {
                    let speed = 1.0 / time;
                    (
                        speed >= least,
                        format!("{what}: {speed:.2} x the first's speed (at least {least})"),
                    )
                }
                Goal::Time(most) => {
                    (time <= most, format!("{what}: {time:.2} x the first's time (at most {most})"))
                }
            })
        })
    }
}

impl Contender {
    fn median(&self) -> Duration {
        median(self.samples.iter().copied()).unwrap_or_default()
    }
}

fn shown(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.1 { format!("{seconds:.4}") } else { format!("{seconds:.2}") }
}
