//! What records are made of: the sizes of values, the pattern of keys, and the bytes themselves.
//!
//! All of it is drawn from seeded generators, so that every run of the same command sends the same.

use std::fmt;
use std::str::FromStr;

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use rand_distr::{Distribution, Normal, Zipf};

use crate::words::counted;

/// The longest value that a size may ask for, in bytes; over every broker's limit.
const LONGEST_VALUE: usize = 64 << 20;

/// How many standard deviations a normal size may lie above its mean, so that there is a largest one.
const NORMAL_CUT: f64 = 4.0;

/// The length of every key in bytes: a letter and 15 digits. All the same, so that keys can be changed in place.
pub(crate) const KEY_LEN: usize = 16;

/// How many keys there may be at most.
const MOST_KEYS: u64 = 1_000_000_000_000_000;

/// In values that are to compress, this many bytes at a time are partly random and partly not.
const COMPRESSIBLE_CHUNK: usize = 64;

/// The sizes of values, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sizes {
    Fixed(usize),
    /// Each size of the range, both ends included, is as likely as any other.
    Uniform(usize, usize),
    /// A normal distribution of this mean and standard deviation, cut off at 0 and at four deviations above the mean.
    Normal(usize, usize),
    /// Sizes with their weights.
    Weighted(Vec<(usize, f64)>),
}

impl Sizes {
    /// Draws a size.
    pub(crate) fn sample(&self, rng: &mut SmallRng) -> usize {
        match self {
            Sizes::Fixed(size) => *size,
            Sizes::Uniform(least, most) => rng.random_range(*least..=*most),
            Sizes::Normal(mean, deviation) => {
                let normal = Normal::new(*mean as f64, *deviation as f64).expect("both are finite");
                (normal.sample(rng).round().max(0.0) as usize).min(self.largest())
            }
            Sizes::Weighted(list) => {
                let total: f64 = list.iter().map(|(_, weight)| weight).sum();
                let mut place = rng.random::<f64>() * total;
                let chosen = list.iter().find(|(_, weight)| {
                    place -= weight;
                    place < 0.0
                });
                chosen.or(list.last()).map_or(0, |(size, _)| *size)
            }
        }
    }

    /// The largest size that can come.
    pub(crate) fn largest(&self) -> usize {
        match self {
            Sizes::Fixed(size) => *size,
            Sizes::Uniform(_, most) => *most,
            Sizes::Normal(mean, deviation) => mean + (NORMAL_CUT * *deviation as f64) as usize,
            Sizes::Weighted(list) => list.iter().map(|(size, _)| *size).max().unwrap_or(0),
        }
    }

    /// The smallest size that can come.
    pub(crate) fn smallest(&self) -> usize {
        match self {
            Sizes::Fixed(size) => *size,
            Sizes::Uniform(least, _) => *least,
            Sizes::Normal(..) => 0,
            Sizes::Weighted(list) => list.iter().map(|(size, _)| *size).min().unwrap_or(0),
        }
    }

    /// The mean size.
    pub(crate) fn mean(&self) -> f64 {
        match self {
            Sizes::Fixed(size) => *size as f64,
            Sizes::Uniform(least, most) => (least + most) as f64 / 2.0,
            Sizes::Normal(mean, _) => *mean as f64,
            Sizes::Weighted(list) => {
                let total: f64 = list.iter().map(|(_, weight)| weight).sum();
                list.iter().map(|(size, weight)| *size as f64 * weight).sum::<f64>() / total
            }
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(range) = text.strip_prefix("uniform:") {
            let (least, most) = range.split_once('-').ok_or("a uniform size is uniform:LEAST-MOST")?;
            let (least, most) = (parse_size(least)?, parse_size(most)?);
            return if least <= most {
                Ok(Sizes::Uniform(least, most))
            } else {
                Err(format!("the range {least}-{most} is empty"))
            };
        }
        if let Some(parameters) = text.strip_prefix("normal:") {
            let (mean, deviation) = parameters.split_once(',').ok_or("a normal size is normal:MEAN,DEVIATION")?;
            return Ok(Sizes::Normal(parse_size(mean)?, parse_size(deviation)?));
        }
        if !text.contains(':') {
            return parse_size(text).map(Sizes::Fixed);
        }
        let mut list = Vec::new();
        for item in text.split(',') {
            let (size, weight) = item
                .split_once(':')
                .ok_or_else(|| format!("`{item}` is not SIZE:WEIGHT, uniform:LEAST-MOST or normal:MEAN,DEVIATION"))?;
            let weight: f64 = weight.parse().map_err(|_| format!("the weight `{weight}` is not a number"))?;
            if !weight.is_finite() || weight <= 0.0 {
                return Err(format!("the weight {weight} is not more than zero"));
            }
            list.push((parse_size(size)?, weight));
        }
        Ok(Sizes::Weighted(list))
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Fixed(size) => write!(f, "{size} B"),
            Sizes::Uniform(least, most) => write!(f, "{least} to {most} B, uniform"),
            Sizes::Normal(mean, deviation) => write!(f, "{mean} ± {deviation} B, normal"),
            Sizes::Weighted(list) => {
                let items: Vec<_> = list.iter().map(|(size, weight)| format!("{size} B × {weight}")).collect();
                f.write_str(&items.join(", "))
            }
        }
    }
}

/// Reads a size: a number of bytes, with or without a unit (B, KB, MB, KiB, MiB).
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: f64 = digits.parse().map_err(|_| format!("`{text}` is not a size such as 100, 1KiB or 2MB"))?;
    let unit = match &text[digits.len()..] {
        "" | "B" => 1.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        unit => return Err(format!("the unit `{unit}` is none of B, KB, MB, KiB, MiB")),
    };
    let size = number * unit;
    if !(0.0..=LONGEST_VALUE as f64).contains(&size) || size.fract() != 0.0 {
        return Err(format!("`{text}` is not a whole number of bytes up to 64 MiB"));
    }
    Ok(size as usize)
}

/// Which key each record gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Keys {
    None,
    /// One after the other, none twice.
    Sequential,
    /// One of this many, each as likely as any other.
    Random(u64),
    /// One of this many; the k-th most frequent comes with a frequency of 1/k to the power of the exponent.
    Zipf(u64, f64),
}

impl FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = |text: &str| match text.parse::<u64>() {
            Ok(count) if (1..=MOST_KEYS).contains(&count) => Ok(count),
            _ => Err(format!("`{text}` is not a number of keys from 1 to {MOST_KEYS}")),
        };
        match text.split_once(':') {
            None if text == "none" => Ok(Keys::None),
            None if text == "sequential" => Ok(Keys::Sequential),
            Some(("random", keys)) => count(keys).map(Keys::Random),
            Some(("zipf", parameters)) => {
                let (keys, exponent) = parameters.split_once(',').unwrap_or((parameters, "0.99"));
                match exponent.parse::<f64>() {
                    Ok(exponent) if exponent.is_finite() && exponent >= 0.0 => Ok(Keys::Zipf(count(keys)?, exponent)),
                    _ => Err(format!("the exponent `{exponent}` is not a number from 0 on")),
                }
            }
            _ => Err(format!("`{text}` is none of none, sequential, random:N, zipf:N and zipf:N,EXPONENT")),
        }
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keys::None => f.write_str("no keys"),
            Keys::Sequential => f.write_str("sequential keys"),
            Keys::Random(count) => write!(f, "{}, random", counted(*count, "key")),
            Keys::Zipf(count, exponent) => write!(f, "{}, Zipf with exponent {exponent}", counted(*count, "key")),
        }
    }
}

/// Draws keys.
pub(crate) struct KeySource {
    keys: Keys,
    rng: SmallRng,
    next: u64,
    step: u64,
}

impl KeySource {
    /// The source number `number` of `of` that draw from the same keys: they share the sequence without overlap.
    pub(crate) fn new(keys: Keys, number: u64, of: u64) -> Self {
        KeySource { keys, rng: SmallRng::seed_from_u64(0xC0FF_EE00 + number), next: number, step: of }
    }

    /// The next key; `None` if records have none.
    pub(crate) fn draw(&mut self) -> Option<[u8; KEY_LEN]> {
        let number = match self.keys {
            Keys::None => return None,
            Keys::Sequential => {
                let number = self.next;
                self.next = (self.next + self.step) % MOST_KEYS;
                number
            }
            Keys::Random(count) => self.rng.random_range(0..count),
            Keys::Zipf(count, exponent) => {
                let zipf = Zipf::new(count as f64, exponent).expect("the parameters were checked");
                zipf.sample(&mut self.rng) as u64 - 1
            }
        };
        Some(key(number))
    }
}

/// The text of a key.
pub(crate) fn key(mut number: u64) -> [u8; KEY_LEN] {
    let mut text = [b'k'; KEY_LEN];
    for digit in text[1..].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    text
}

/// Fills a value: random bytes, of which a share of `compressible` (0 to 1) is replaced by ones that compress away.
pub(crate) fn fill(value: &mut [u8], compressible: f64, rng: &mut SmallRng) {
    rng.fill_bytes(value);
    let kept = ((1.0 - compressible) * COMPRESSIBLE_CHUNK as f64).round() as usize;
    for chunk in value.chunks_mut(COMPRESSIBLE_CHUNK) {
        let kept = kept.min(chunk.len());
        chunk[kept..].fill(b'.');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_told() {
        let parse = |text: &str| text.parse::<Sizes>();
        assert_eq!(parse("100"), Ok(Sizes::Fixed(100)));
        assert_eq!(parse("1.5KiB"), Ok(Sizes::Fixed(1536)));
        assert_eq!(parse("uniform:100-2KB"), Ok(Sizes::Uniform(100, 2000)));
        assert_eq!(parse("normal:1KiB,200"), Ok(Sizes::Normal(1024, 200)));
        assert_eq!(parse("100:70,64KiB:5"), Ok(Sizes::Weighted(vec![(100, 70.0), (65536, 5.0)])));
        assert_eq!(parse("uniform:1-2").unwrap().to_string(), "1 to 2 B, uniform");
    }

    #[test]
    fn sizes_that_mean_nothing_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "is not a size"),
            ("1GiB", "is none of"),
            ("0.3", "whole number"),
            ("-1", "whole number"),
            ("65MiB", "up to 64 MiB"),
            ("uniform:5-3", "is empty"),
            ("uniform:5", "LEAST-MOST"),
            ("normal:5", "MEAN,DEVIATION"),
            ("100:0", "more than zero"),
            ("100:70,200", "SIZE:WEIGHT"),
            ("weird:7", "is not a size"),
        ] {
            let error = text.parse::<Sizes>().unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn samples_follow_the_distribution() {
        for text in ["100", "uniform:100-300", "normal:1000,100", "100:3,1000:1"] {
            let sizes: Sizes = text.parse().unwrap();
            let mut rng = SmallRng::seed_from_u64(1);
            let drawn: Vec<usize> = (0..20_000).map(|_| sizes.sample(&mut rng)).collect();
            let mean = drawn.iter().sum::<usize>() as f64 / drawn.len() as f64;
            assert!((mean - sizes.mean()).abs() < sizes.mean() * 0.02, "{text}: {mean}");
            assert!(drawn.iter().all(|size| (sizes.smallest()..=sizes.largest()).contains(size)), "{text}");
        }
        let sizes: Sizes = "100:3,1000:1".parse().unwrap();
        let mut rng = SmallRng::seed_from_u64(2);
        let small = (0..10_000).filter(|_| sizes.sample(&mut rng) == 100).count();
        assert!((7300..7700).contains(&small), "{small}");
    }

    #[test]
    fn keys_follow_their_pattern() {
        let mut two = [KeySource::new(Keys::Sequential, 0, 2), KeySource::new(Keys::Sequential, 1, 2)];
        let drawn: Vec<_> = (0..4).map(|turn| two[turn % 2].draw().unwrap()).collect();
        assert_eq!(drawn, [key(0), key(1), key(2), key(3)]);
        assert_eq!(&key(42), b"k000000000000042");
        assert_eq!(KeySource::new(Keys::None, 0, 1).draw(), None);

        let frequency = |keys: Keys, wanted: u64| {
            let mut source = KeySource::new(keys, 0, 1);
            (0..10_000).filter(|_| source.draw() == Some(key(wanted))).count()
        };
        assert!((900..1100).contains(&frequency(Keys::Random(10), 3)));
        // With exponent 1 and three keys, the first has 6/11 of all.
        assert!((5200..5700).contains(&frequency(Keys::Zipf(3, 1.0), 0)));
        assert!((1500..2100).contains(&frequency(Keys::Zipf(3, 1.0), 2)));
    }

    #[test]
    fn key_patterns_that_mean_nothing_are_refused() {
        for text in ["", "some", "random", "random:0", "zipf:10,x", "zipf:10,-1", "random:x"] {
            assert!(text.parse::<Keys>().is_err(), "{text:?}");
        }
        assert_eq!("zipf:10".parse(), Ok(Keys::Zipf(10, 0.99)));
    }

    #[test]
    fn values_compress_as_much_as_was_asked() {
        use lnc_protocol::{BatchBuilder, Codec};
        for (compressible, expected) in [(0.0, 100_000.0), (0.5, 50_000.0), (0.9, 10_000.0)] {
            let mut value = vec![0; 100_000];
            fill(&mut value, compressible, &mut SmallRng::seed_from_u64(3));
            let mut builder = BatchBuilder::new(Codec::Zstd);
            builder.append(0, None, Some(&value), &[]).unwrap();
            let len = builder.build().len() as f64;
            assert!((len - expected).abs() < 6_000.0, "{compressible}: {len}");
        }
    }
}
