//! A slow link to the registry, as a TCP proxy: a round-trip time and a rate, in a process of its own.
//!
//! What it does, per connection, and where it stands in for the network:
//!
//! - connecting takes a round trip: nothing of the client's is passed on earlier;
//! - every byte arrives half a round trip after it was sent, in both directions;
//! - what the registry sends goes through one bottleneck that all connections share, at the link's rate, or
//!   through one for each;
//! - a sender starts slowly, with ten segments a round trip and as many more as were acknowledged, and again
//!   so after a pause: a connection that is kept and used is worth something here as it is outside.
//!
//! There are no losses, no headers on the wire, and no limit towards the registry. Two threads a direction;
//! at 1 Gbit/s it needs about a tenth of a core, so it takes little from those that are measured.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;

/// This program, called with this, is the proxy.
pub(crate) const SUBCOMMAND: &str = "serve-link";

/// Large enough to cost little at a gigabit, small enough that connections share the link evenly.
const CHUNK: usize = 64 << 10;
/// What Linux sends before the first acknowledgement: 10 segments of an Ethernet.
const INITIAL_WINDOW: usize = 10 * 1448;
/// A pause after which Linux starts slowly again (the retransmission timeout has this floor).
const IDLE: Duration = Duration::from_millis(200);
/// How far ahead of the wire the bottleneck's queue may be filled. More would only delay small answers.
const QUEUE: Duration = Duration::from_millis(2);

#[derive(Clone, Copy)]
pub(crate) struct Link {
    pub(crate) rtt: Duration,
    pub(crate) bytes_per_second: u64,
    pub(crate) sharing: Sharing,
}

/// Whose the rate of a link is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// That of all connections together.
    All,
    /// That of each connection, as many registries and what is before them have it.
    Each,
}

impl Sharing {
    const NAMES: [(Self, &'static str); 2] = [(Self::All, "all"), (Self::Each, "each")];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(sharing, _)| *sharing == self).map_or("all", |(_, name)| name)
    }

    fn parse(text: &str) -> Result<Self> {
        let found = Self::NAMES.iter().find(|(_, name)| *name == text);
        found.map(|(sharing, _)| *sharing).ok_or_else(|| format!("not a sharing: {text}").into())
    }
}

impl Link {
    /// What the link itself needs for so many bytes.
    pub(crate) fn time_for(self, bytes: u64) -> Duration {
        Duration::from_nanos(
            u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second))
                .unwrap_or(u64::MAX),
        )
    }
}

/// The proxy as its user sees it; it ends with this value.
pub(crate) struct LinkProxy {
    child: Child,
    port: u16,
}

impl LinkProxy {
    pub(crate) fn start(upstream: &str, link: Link) -> Result<Self> {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(std::env::current_exe()?)
            .args([
                SUBCOMMAND,
                upstream,
                &link.rtt.as_nanos().to_string(),
                &link.bytes_per_second.to_string(),
                link.sharing.name(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        BufReader::new(child.stdout.take().ok_or("the proxy has no output")?)
            .read_line(&mut said)?;
        let port = said.trim().parse().map_err(|_| "the proxy does not start")?;
        Ok(Self { child, port })
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Processor time used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        const TICKS_PER_SECOND: u32 = 100; // the kernel's unit in /proc on every Linux
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field, the name, may have blanks in it; user and system time are the 14th and 15th.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .ok_or("/proc/PID/stat has no name")?
            .1
            .split_whitespace()
            .collect();
        let ticks = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
        Ok(Duration::from_secs(1) * ticks / TICKS_PER_SECOND)
    }
}

impl Drop for LinkProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The proxy's `main`: `UPSTREAM RTT_NANOSECONDS BYTES_PER_SECOND all|each`. Says its port and serves until it is killed.
pub(crate) fn serve_forever(arguments: &[String]) -> Result<()> {
    let [upstream, rtt, bytes_per_second, sharing] = arguments else {
        return Err("serve-link takes four arguments".into());
    };
    let link = Link {
        rtt: Duration::from_nanos(rtt.parse()?),
        bytes_per_second: bytes_per_second.parse()?,
        sharing: Sharing::parse(sharing)?,
    };
    let shared = Wire::new(link);
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    println!("{}", listener.local_addr()?.port());
    for client in listener.incoming() {
        let accepted = Instant::now();
        // A connection that fails is its client's matter, who sees it closed.
        let (Ok(client), Ok(server)) = (client, TcpStream::connect(upstream)) else {
            continue;
        };
        let wire = match link.sharing {
            Sharing::All => shared.clone(),
            Sharing::Each => Wire::new(link),
        };
        let _ = connect(&wire, accepted, &client, &server);
    }
    Ok(())
}

/// The bottleneck: when it will have sent all that it was given.
struct Wire {
    link: Link,
    free_from: Mutex<Instant>,
}

impl Wire {
    fn new(link: Link) -> Arc<Self> {
        Arc::new(Self { link, free_from: Mutex::new(Instant::now()) })
    }

    /// Puts bytes on the wire; says when the last of them has left.
    fn send(&self, bytes: usize) -> Instant {
        let mut free_from = self.free_from.lock().unwrap_or_else(PoisonError::into_inner);
        *free_from = (*free_from).max(Instant::now()) + self.link.time_for(bytes as u64);
        *free_from
    }
}

fn connect(
    wire: &Arc<Wire>,
    accepted: Instant,
    client: &TcpStream,
    server: &TcpStream,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let Link { rtt, .. } = wire.link;
    let requests = Requests { not_before: accepted + rtt, delay: rtt / 2 };
    let responses = Responses { wire: Arc::clone(wire), window: Window::new(wire.link) };
    start_direction(client.try_clone()?, server.try_clone()?, requests)?;
    start_direction(server.try_clone()?, client.try_clone()?, responses)
}

/// When bytes may be taken from their sender, and when they are there.
trait Pace {
    /// Waits until the sender may send; says how much.
    fn room(&mut self) -> usize;
    /// Sends that much; says when it arrives.
    fn arrival(&mut self, bytes: usize) -> Instant;
}

/// From the client: little, so it only takes its time.
struct Requests {
    not_before: Instant,
    delay: Duration,
}

impl Pace for Requests {
    fn room(&mut self) -> usize {
        CHUNK
    }

    fn arrival(&mut self, _bytes: usize) -> Instant {
        Instant::now().max(self.not_before) + self.delay
    }
}

/// From the registry.
struct Responses {
    wire: Arc<Wire>,
    window: Window,
}

impl Pace for Responses {
    fn room(&mut self) -> usize {
        self.window.wait_for_room()
    }

    fn arrival(&mut self, bytes: usize) -> Instant {
        let sent = self.wire.send(bytes);
        thread::sleep(sent.saturating_duration_since(Instant::now()).saturating_sub(QUEUE));
        self.window.sent(bytes, sent + self.wire.link.rtt);
        sent + self.wire.link.rtt / 2
    }
}

/// Bytes on their way, and when they arrive.
type InFlight = (Instant, Vec<u8>);

/// One thread reads what the source sends, another writes to the sink what has arrived.
fn start_direction(
    source: TcpStream,
    sink: TcpStream,
    pace: impl Pace + Send + 'static,
) -> std::io::Result<()> {
    let (to_writer, arriving) = mpsc::sync_channel(1024);
    let (give_back, spare) = mpsc::sync_channel(16);
    let also_source = source.try_clone()?;
    spawn(move || take(source, pace, &to_writer, &spare))?;
    spawn(move || {
        deliver(&arriving, &give_back, sink);
        // If nobody takes the rest, the sender should know.
        let _ = also_source.shutdown(Shutdown::Read);
    })
}

fn take(
    mut source: TcpStream,
    mut pace: impl Pace,
    to_writer: &SyncSender<InFlight>,
    spare: &Receiver<Vec<u8>>,
) {
    // The window may have changed by the time that there is something to send: first wait for that.
    while source.peek(&mut [0]).is_ok_and(|n| n > 0) {
        let mut buffer = spare.try_recv().unwrap_or_default();
        buffer.resize(CHUNK, 0);
        let room = pace.room().min(CHUNK);
        let Ok(n) = source.read(&mut buffer[..room]) else {
            return;
        };
        buffer.truncate(n);
        if to_writer.send((pace.arrival(n), buffer)).is_err() {
            return;
        }
    }
}

fn deliver(arriving: &Receiver<InFlight>, give_back: &SyncSender<Vec<u8>>, mut sink: TcpStream) {
    while let Ok((due, buffer)) = arriving.recv() {
        sleep_until(due);
        if sink.write_all(&buffer).is_err() {
            return;
        }
        let _ = give_back.try_send(buffer);
    }
    let _ = sink.shutdown(Shutdown::Write);
}

/// How much a sender may have on its way: TCP's slow start, and no further than the link can use.
struct Window {
    size: usize,
    limit: usize,
    in_flight: usize,
    /// When what was sent is acknowledged.
    acknowledgements: VecDeque<(Instant, usize)>,
    last_sent: Instant,
}

impl Window {
    fn new(link: Link) -> Self {
        let on_the_link = u128::from(link.bytes_per_second) * link.rtt.as_nanos() / 1_000_000_000;
        let limit = usize::try_from(2 * on_the_link).unwrap_or(usize::MAX).max(INITIAL_WINDOW);
        Self {
            size: INITIAL_WINDOW,
            limit,
            in_flight: 0,
            acknowledgements: VecDeque::new(),
            last_sent: Instant::now(),
        }
    }

    /// Waits until something may be sent; says how much.
    fn wait_for_room(&mut self) -> usize {
        loop {
            while let Some((_, bytes)) =
                self.acknowledgements.pop_front_if(|(at, _)| *at <= Instant::now())
            {
                self.in_flight -= bytes;
                self.size = (self.size + bytes).min(self.limit);
            }
            if self.in_flight == 0 && self.last_sent.elapsed() > IDLE {
                self.size = INITIAL_WINDOW;
            }
            match self.acknowledgements.front() {
                Some((at, _)) if self.in_flight >= self.size => sleep_until(*at),
                _ => return self.size - self.in_flight,
            }
        }
    }

    fn sent(&mut self, bytes: usize, acknowledged: Instant) {
        self.in_flight += bytes;
        self.acknowledgements.push_back((acknowledged, bytes));
        self.last_sent = Instant::now();
    }
}

fn sleep_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

fn spawn(run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    // There are many, and they need little.
    thread::Builder::new().stack_size(128 << 10).spawn(run).map(drop)
}
