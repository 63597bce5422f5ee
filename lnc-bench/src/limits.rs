//! What the machine can do: the floor under every latency and the ceiling over every throughput, so that a report can
//! say how near it came.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::args::LimitsArgs;
use crate::measure::histogram;
use crate::process;
use crate::report::Report;

/// The bytes that one sync makes durable, and the alignment of direct I/O.
const BLOCK: usize = 4096;

/// What the one writer makes durable at a time: as many records of 1 KiB as one connection of the standard workload has
/// under way.
const WRITER_RECORDS: usize = 64;
const WRITER_BATCH: usize = WRITER_RECORDS * 1024;

/// Blocks of the file that is overwritten.
const BLOCKS: u64 = 4096;

/// The bytes of one operation of sequential I/O.
const SEQUENTIAL: usize = 4 << 20;

/// The bytes of one message of the ping-pong, and of one write of the stream.
const PING: usize = 64;
const STREAM: usize = 256 * 1024;

/// What is copied at a time, larger than the caches of most processors; and what is summed at a time, from them.
const COPY: usize = 64 << 20;
const SUM: usize = 64 * 1024;

/// How long each part of a calibration takes, and how much it writes in sequence.
const CALIBRATION: Duration = Duration::from_millis(500);
const CALIBRATION_FILE: u64 = 256 << 20;

/// What the machine can do.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Limits {
    pub(crate) file_system: String,
    /// Whether the sequential figures are of direct I/O; else they are those of the page cache.
    pub(crate) direct: bool,
    /// `fdatasync` after 4 KiB were overwritten in a file that has all its blocks.
    pub(crate) overwrite: Timing,
    /// `fdatasync` after 4 KiB were appended to a file.
    pub(crate) append: Timing,
    /// Records a second of one writer who appends 64 records of 1 KiB to a file, has them synced (`fdatasync`), and only
    /// then goes on: what one connection with 64 requests under way would get from the disk alone. In the median.
    pub(crate) writer_records_per_second: f64,
    /// Units of 10^6 bytes a second.
    pub(crate) write: f64,
    pub(crate) read: f64,
    /// A message of 64 bytes to another thread and back, over loopback.
    pub(crate) ping_pong: Timing,
    pub(crate) loopback: f64,
    pub(crate) memcpy: f64,
    pub(crate) crc32c: f64,
    pub(crate) crc32: f64,
}

/// How long something takes, in microseconds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Timing {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// A figure of a report beside the limit that bounds it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ratio {
    pub(crate) what: String,
    pub(crate) measured: f64,
    pub(crate) limit: f64,
    pub(crate) unit: String,
    /// The measured figure divided by the limit.
    pub(crate) ratio: f64,
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ratio { what, measured, limit, unit, ratio } = self;
        write!(f, "{what}: {measured:.1} to {limit:.1} {unit}, a ratio of {ratio:.3}")
    }
}

impl Limits {
    /// What a report's figures are to be compared with.
    pub(crate) fn ratios(&self, report: &Report) -> Vec<Ratio> {
        let mut ratios = Vec::new();
        let mut add = |what: &str, measured: f64, limit: f64, unit: &str| {
            let (what, unit) = (what.to_owned(), unit.to_owned());
            ratios.push(Ratio { what, measured, limit, unit, ratio: measured / limit });
        };
        if let Some(latency) = &report.latency {
            // From the client to the leader and from the leader to a follower, whose disks work side by side.
            let floor = self.overwrite.p50_us + 2.0 * self.ping_pong.p50_us;
            add("p50 latency to one fdatasync and two round trips", latency.p50_us, floor, "µs");
            add("p99 latency to one fdatasync and two round trips", latency.p99_us, floor, "µs");
            add("throughput to sequential writing", report.megabytes_per_second, self.write, "MB/s");
        } else {
            add("throughput to sequential reading", report.megabytes_per_second, self.read, "MB/s");
        }
        add("throughput to a loopback stream", report.megabytes_per_second, self.loopback, "MB/s");
        let written: Option<u64> = report.servers.iter().map(|server| server.written).sum();
        if let Some(written) = written.filter(|written| *written > 0) {
            let rate = written as f64 / report.seconds / 1e6;
            add("what the local servers write to sequential writing", rate, self.write, "MB/s");
        }
        ratios
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timing = |timing: Timing| format!("p50 {:.1} µs, p99 {:.1} µs", timing.p50_us, timing.p99_us);
        let io = if self.direct { "direct" } else { "through the page cache: the file system has no direct I/O" };
        writeln!(f, "file system      {}", self.file_system)?;
        writeln!(f, "overwrite, sync  {}", timing(self.overwrite))?;
        writeln!(f, "append, sync     {}", timing(self.append))?;
        writeln!(
            f,
            "one writer       {:.0} records/s, 64 records of 1 KiB with each sync",
            self.writer_records_per_second
        )?;
        writeln!(f, "sequential write {:.0} MB/s ({io})", self.write)?;
        writeln!(f, "sequential read  {:.0} MB/s ({io})", self.read)?;
        writeln!(f, "ping-pong        {}", timing(self.ping_pong))?;
        writeln!(f, "loopback stream  {:.0} MB/s", self.loopback)?;
        writeln!(f, "memcpy           {:.0} MB/s", self.memcpy)?;
        writeln!(f, "crc32c           {:.0} MB/s", self.crc32c)?;
        writeln!(f, "crc32            {:.0} MB/s", self.crc32)
    }
}

/// Measures all limits.
pub(crate) fn run(args: &LimitsArgs) -> io::Result<Limits> {
    measure(&args.dir, args.duration, args.file_size)
}

/// Measures all limits in short.
pub(crate) fn calibrate(dir: &Path) -> io::Result<Limits> {
    measure(dir, CALIBRATION, CALIBRATION_FILE)
}

fn measure(dir: &Path, time: Duration, file_size: u64) -> io::Result<Limits> {
    let scratch = Scratch::new(dir)?;
    let overwrite = overwrite(&scratch.0.join("overwrite"), time)?;
    let append = append(&scratch.0.join("append"), time)?;
    let writer_records_per_second = writer(&scratch.0.join("writer"), time)?;
    let (write, read, direct) = sequential(&scratch.0.join("sequential"), time, file_size)?;
    Ok(Limits {
        file_system: process::file_system(&scratch.0).unwrap_or_else(|| "unknown".into()),
        direct,
        overwrite,
        append,
        writer_records_per_second,
        write,
        read,
        ping_pong: ping_pong(time)?,
        loopback: loopback(time)?,
        memcpy: memcpy(time),
        crc32c: summing(time, |bytes| u64::from(crc32c::crc32c(bytes))),
        crc32: summing(time, |bytes| u64::from(crc32fast::hash(bytes))),
    })
}

/// A directory that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: &Path) -> io::Result<Scratch> {
        let path = dir.join(format!("lnc-bench-limits-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Repeats an operation for some time.
fn repeat(time: Duration, mut operation: impl FnMut(u64) -> io::Result<()>) -> io::Result<Timing> {
    let mut times = histogram();
    let start = Instant::now();
    while start.elapsed() < time || times.is_empty() {
        let before = Instant::now();
        operation(times.len())?;
        times.saturating_record(before.elapsed().as_nanos() as u64);
    }
    Ok(timing(&times))
}

fn timing(times: &Histogram<u64>) -> Timing {
    let quantile = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1000.0;
    Timing { p50_us: quantile(0.5), p99_us: quantile(0.99) }
}

fn overwrite(path: &Path, time: Duration) -> io::Result<Timing> {
    let file = File::create_new(path)?;
    for block in 0..BLOCKS {
        file.write_all_at(&[0; BLOCK], block * BLOCK as u64)?;
    }
    file.sync_all()?;
    repeat(time, |turn| {
        file.write_all_at(&[turn as u8; BLOCK], turn % BLOCKS * BLOCK as u64)?;
        file.sync_data()
    })
}

fn append(path: &Path, time: Duration) -> io::Result<Timing> {
    let mut file = File::create_new(path)?;
    repeat(time, |turn| {
        file.write_all(&[turn as u8; BLOCK])?;
        file.sync_data()
    })
}

/// By the median, since one pause of a shared disk would say more about the pause than about the disk.
fn writer(path: &Path, time: Duration) -> io::Result<f64> {
    let mut file = File::create_new(path)?;
    let batch = vec![0x5A; WRITER_BATCH];
    let timing = repeat(time, |_| {
        file.write_all(&batch)?;
        file.sync_data()
    })?;
    Ok(WRITER_RECORDS as f64 * 1e6 / timing.p50_us)
}

/// Writes a file from start to end and reads it, for the given time or until it has the given size. MB/s of writing and
/// reading, and whether both were direct.
fn sequential(path: &Path, time: Duration, file_size: u64) -> io::Result<(f64, f64, bool)> {
    let open = |direct: bool| {
        let flags = if direct { OFlags::DIRECT.bits() as i32 } else { 0 };
        OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path)
    };
    let (file, direct) = match open(true) {
        Ok(file) => (file, true),
        Err(_) => (open(false)?, false),
    };
    // A buffer whose start is aligned lies somewhere in one that is larger.
    let mut buffer = vec![0x5A; SEQUENTIAL + BLOCK];
    let at = buffer.as_ptr().align_offset(BLOCK);
    let buffer = &mut buffer[at..at + SEQUENTIAL];
    let pass = |operation: &mut dyn FnMut(u64) -> io::Result<()>, size: u64| {
        let start = Instant::now();
        let mut done = 0;
        while done < size && (start.elapsed() < time || done == 0) {
            operation(done)?;
            done += SEQUENTIAL as u64;
        }
        Ok::<_, io::Error>((done, start))
    };
    let (size, start) = pass(&mut |place| file.write_all_at(buffer, place), file_size)?;
    file.sync_data()?;
    let write = rate(size, start);
    let (done, start) = pass(&mut |place| file.read_exact_at(buffer, place), size)?;
    Ok((write, rate(done, start), direct))
}

/// Units of 10^6 bytes a second.
fn rate(bytes: u64, since: Instant) -> f64 {
    bytes as f64 / since.elapsed().as_secs_f64() / 1e6
}

/// Two ends of a connection over loopback.
fn connection() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let (other, _) = listener.accept()?;
    one.set_nodelay(true)?;
    other.set_nodelay(true)?;
    Ok((one, other))
}

fn ping_pong(time: Duration) -> io::Result<Timing> {
    let (mut one, mut other) = connection()?;
    let answering = std::thread::spawn(move || {
        let mut message = [0; PING];
        while other.read_exact(&mut message).is_ok() && other.write_all(&message).is_ok() {}
    });
    let mut message = [1; PING];
    let timing = repeat(time, |_| {
        one.write_all(&message)?;
        one.read_exact(&mut message)
    });
    drop(one);
    answering.join().map_err(|_| io::Error::other("the thread that answers failed"))?;
    timing
}

fn loopback(time: Duration) -> io::Result<f64> {
    let (mut one, mut other) = connection()?;
    let sending = std::thread::spawn(move || {
        let chunk = vec![0x5A; STREAM];
        while one.write_all(&chunk).is_ok() {}
    });
    let mut buffer = vec![0; STREAM];
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < time {
        bytes += other.read(&mut buffer)? as u64;
    }
    let rate = rate(bytes, start);
    drop(other);
    sending.join().map_err(|_| io::Error::other("the thread that sends failed"))?;
    Ok(rate)
}

fn memcpy(time: Duration) -> f64 {
    let source = vec![0x5A_u8; COPY];
    let mut target = vec![0_u8; COPY];
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < time || bytes == 0 {
        target.copy_from_slice(std::hint::black_box(&source));
        std::hint::black_box(&mut target);
        bytes += COPY as u64;
    }
    rate(bytes, start)
}

fn summing(time: Duration, sum: impl Fn(&[u8]) -> u64) -> f64 {
    let data = vec![0x5A_u8; SUM];
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < time || bytes == 0 {
        std::hint::black_box(sum(std::hint::black_box(&data)));
        bytes += SUM as u64;
    }
    rate(bytes, start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_limits_are_measured_and_nothing_is_left() {
        let dir = std::env::temp_dir().join(format!("lnc-bench-test-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let limits = measure(&dir, Duration::from_millis(5), 8 << 20).unwrap();
        let left = fs::read_dir(&dir).unwrap().count();
        fs::remove_dir(&dir).unwrap();
        assert_eq!(left, 0);
        let writer = limits.writer_records_per_second;
        let rates = [writer, limits.write, limits.read, limits.loopback, limits.memcpy, limits.crc32c, limits.crc32];
        assert!(rates.iter().all(|rate| rate.is_finite() && *rate > 1.0), "{limits}");
        for timing in [limits.overwrite, limits.append, limits.ping_pong] {
            assert!(timing.p50_us > 0.0 && timing.p99_us >= timing.p50_us, "{limits}");
        }
        let json = serde_json::to_string(&limits).unwrap();
        let again: Limits = serde_json::from_str(&json).unwrap();
        assert_eq!(again.to_string(), limits.to_string());
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        assert!(measure(Path::new("/nonexistent"), Duration::ZERO, 8 << 20).is_err());
    }

    #[test]
    fn ratios_compare_like_with_like() {
        let timing = |p50_us| Timing { p50_us, p99_us: p50_us };
        let limits = Limits {
            file_system: "ext4".into(),
            direct: true,
            overwrite: timing(150.0),
            append: timing(200.0),
            writer_records_per_second: 1.0,
            write: 1000.0,
            read: 2000.0,
            ping_pong: timing(50.0),
            loopback: 4000.0,
            memcpy: 1.0,
            crc32c: 1.0,
            crc32: 1.0,
        };
        let report = crate::report::tests::sample();
        let p99 = report.latency.as_ref().expect("a sample with latencies").p99_us / 250.0;
        // p50 of 500 µs, 2 MB/s of values, 2 MB written in 2 s.
        let ratios = limits.ratios(&report);
        let expected = [2.0, p99, 0.002, 0.0005, 0.001];
        for (ratio, expected) in ratios.iter().zip(expected) {
            assert!((ratio.ratio / expected - 1.0).abs() < 0.01, "{ratio}");
        }
        assert_eq!(ratios.len(), expected.len());
    }
}
