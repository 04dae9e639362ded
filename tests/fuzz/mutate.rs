//! Inputs made of seeds, each a function of the seeds and a number alone.

/// What lengths, counts and text fields are not made for.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 63,
    u64::MAX,
];
const WORDS: [&str; 16] = [
    "-1",
    "0",
    "1e999",
    "NaN",
    "null",
    "[]",
    "{}",
    "\"\"",
    "18446744073709551616",
    "9223372036854775807",
    "4294967296",
    "0.0000001",
    "\u{0}",
    "\u{fffd}ü\u{1f9ed}",
    "((((((((((((((((",
    "[[[[[[[[[[[[[[[[",
];

/// Small deterministic random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// One of the seeds, changed in one to a few places; number `n` of the first so many is that seed itself.
pub fn mutated(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    if let Some(seed) = seeds.get(number as usize) {
        return seed.clone();
    }
    let mut random = Random(number);
    let mut bytes = seeds[random.below(seeds.len())].clone();
    let longest = 2 * bytes.len() + 4096;
    for _ in 0..[1, 1, 1, 2, 3, 5, 9][random.below(7)] {
        change(&mut bytes, seeds, &mut random);
    }
    bytes.truncate(longest);
    bytes
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let len = bytes.len();
    let (start, end) = stretch(len, random);
    match random.below(11) {
        0 => at(bytes, random, |byte, bit| byte ^ 1 << (bit % 8)),
        1 => at(bytes, random, |_, other| other as u8),
        2 | 3 => number(bytes, random),
        4 => drop(bytes.drain(start..end)),
        5 => bytes.truncate(start),
        6 => {
            let part = bytes[start..end].to_vec();
            let to = random.below(len + 1);
            bytes.splice(to..to, part);
        }
        7 => {
            let part = bytes[start..end].to_vec();
            let to = random.below(len + 1);
            bytes.splice(to..(to + part.len()).min(len), part);
        }
        8 => {
            let other = &seeds[random.below(seeds.len())];
            let (from, until) = stretch(other.len(), random);
            bytes.splice(start..end, other[from..until].iter().copied());
        }
        9 => {
            let word = WORDS[random.below(WORDS.len())];
            bytes.splice(start..start, word.bytes());
        }
        _ => word(bytes, random),
    }
}

/// A stretch that is mostly short.
fn stretch(len: usize, random: &mut Random) -> (usize, usize) {
    let start = random.below(len + 1);
    let longest = [2, 8, 64, 4096, len][random.below(5)];
    (start, (start + random.below(longest + 1)).min(len))
}

fn at(bytes: &mut [u8], random: &mut Random, change: impl Fn(u8, usize) -> u8) {
    let place = random.below(bytes.len());
    let other = random.below(256);
    if let Some(byte) = bytes.get_mut(place) {
        *byte = change(*byte, other);
    }
}

/// A number in the place of another of 1 to 8 bytes, or near to it.
fn number(bytes: &mut [u8], random: &mut Random) {
    let size = [1, 2, 4, 8][random.below(4)];
    let place = random.below(bytes.len());
    let Some(field) = bytes.get_mut(place..place + size) else { return };
    let mut old = [0; 8];
    old[..size].copy_from_slice(field);
    let near = u64::from_le_bytes(old).wrapping_add(random.below(9) as u64).wrapping_sub(4);
    let new = match random.below(2) {
        0 => near,
        _ => NUMBERS[random.below(NUMBERS.len())],
    };
    let new = new.to_le_bytes();
    match random.below(4) {
        0 => field.iter_mut().zip(new[..size].iter().rev()).for_each(|(f, n)| *f = *n),
        _ => field.copy_from_slice(&new[..size]),
    }
}

/// A word of a text (letters and digits) becomes another.
fn word(bytes: &mut Vec<u8>, random: &mut Random) {
    let inside = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
    let from = random.below(bytes.len());
    let Some(start) = bytes.iter().skip(from).position(inside).map(|at| from + at) else { return };
    let len = bytes.iter().skip(start).take_while(|b| inside(b)).count();
    let new = WORDS[random.below(WORDS.len())];
    bytes.splice(start..start + len, new.bytes());
}

#[test]
fn the_same_number_gives_the_same_input() {
    let seeds = [b"{\"a\": 12}".to_vec(), vec![], vec![7; 100]];
    let all = |from: u64| (from..from + 2000).map(|n| mutated(&seeds, n)).collect::<Vec<_>>();
    assert_eq!(all(0), all(0));
    assert_eq!(all(0)[..3], seeds);
    let distinct: std::collections::HashSet<_> = all(3).into_iter().collect();
    assert!(distinct.len() > 1000, "{}", distinct.len());
}
