//! Speech that was written down as the same words over and over is written again, by chance. After openai/whisper's
//! `decode_with_fallback`, with its temperatures and limits; of each temperature one text is tried.

use super::{Ended, Generated, Sampling};
use crate::error::Result;

/// Tried one after the other.
const TEMPERATURES: [f32; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];

/// Bytes of a text over those that it could be packed into, above which it says the same over and over.
const MOST_PACKED: f64 = 2.4;

/// What a text that was drawn must have as the mean of its tokens' log probabilities.
const LEAST_LIKELY: f64 = -1.0;

/// What one try wrote, and the mean of its tokens' log probabilities where it was asked for.
pub(super) type Try = (Generated, f64);

/// The first text that is none of the same words over and over, else that which is least so. `write` writes one,
/// and measures its tokens where the second argument says so: the first try is judged by its text alone, which
/// costs nothing.
pub(super) fn tries(
    sampling: Sampling,
    write: &mut dyn FnMut(Sampling, bool) -> Result<Try>,
) -> Result<Generated> {
    let mut best: Option<((f64, f64), Generated)> = None;
    for temperature in TEMPERATURES {
        let (found, likely) = write(Sampling { temperature, ..sampling }, temperature > 0.0)?;
        let packed = packed(found.text.as_bytes());
        let repeats = packed > MOST_PACKED;
        if found.ended == Ended::Listener || !repeats && likely >= LEAST_LIKELY {
            return Ok(found);
        }
        let fault = (if repeats { packed } else { 0.0 }, -likely);
        if best.as_ref().is_none_or(|(least, _)| fault < *least) {
            best = Some((fault, found));
        }
    }
    best.map(|(_, found)| found).ok_or_else(|| crate::error::Error::failed("nothing was tried"))
}

/// Bytes of `text` over those that deflate needs with its fixed codes, greedy (RFC 1951, 3.2.6; zlib's header and
/// sum around it). zlib itself packs texts of few repetitions better, by codes of their own; of the same words over
/// and over it makes as much.
fn packed(text: &[u8]) -> f64 {
    let mut bits = 10 + 8 * 6;
    let mut at = 0;
    while at < text.len() {
        let match_at = |from: usize| {
            let same = text[from..].iter().zip(&text[at..]).take(258);
            (same.take_while(|(a, b)| a == b).count(), from)
        };
        let longest = (0..at).map(match_at).max().filter(|(length, _)| *length >= 3);
        // 7 bits of length (8 of a long one) and 5 of distance, with the lower bits of both behind them.
        bits += longest.map_or(8, |(length, from)| {
            let lower = |value: usize, exact: u32| value.max(1).ilog2().saturating_sub(exact);
            12 + lower(length - 3, 2) + lower(at - from - 1, 1)
        }) as usize;
        at += longest.map_or(1, |(length, _)| length);
    }
    8.0 * text.len() as f64 / bits as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SAID: &str = " The boy was there when the sun rose, and a rod is used to catch pink salmon. The source of \
                        the huge river is the clear spring; kick the ball straight and follow through.";

    fn wrote(sampling: Sampling, text: &str) -> Generated {
        Generated {
            ids: vec![],
            text: text.into(),
            prompt_tokens: 2,
            ended: Ended::End,
            temperature: sampling.temperature,
            prompt_time: Duration::ZERO,
            time: Duration::ZERO,
        }
    }

    /// What came of texts with their likelihoods, try by try, and which tries were measured.
    fn of(texts: &[(&str, f64)]) -> (Generated, Vec<bool>) {
        let (mut left, mut measured) = (texts.iter(), vec![]);
        let sampling = Sampling { seed: 5, ..Sampling::default() };
        let found = tries(sampling, &mut |sampling, measure| {
            assert_eq!(sampling.seed, 5);
            measured.push(measure);
            let (text, likely) = left.next().unwrap();
            Ok((wrote(sampling, text), *likely))
        });
        (found.unwrap(), measured)
    }

    #[test]
    fn the_same_over_and_over_packs_well_and_speech_does_not() {
        // Beside them what zlib makes of them (Python 3.11's zlib.compress).
        for (text, want) in [
            (SAID.to_string(), 1.34),
            (" you".repeat(5), 1.43),
            (" you".repeat(20), 5.33),
            (" Thank you very much.".repeat(8), 5.25),
            (format!("{SAID}{}", " no".repeat(60)), 2.63),
            (format!("{SAID}{}", " no".repeat(100)), 3.46),
        ] {
            let found = packed(text.as_bytes()) / want;
            assert!((0.75..1.25).contains(&found), "{found} of zlib's: {text}");
        }
        assert!(packed(SAID.as_bytes()) < 1.7);
        assert!(packed(" Thank you very much.".repeat(8).as_bytes()) > 4.0);
        assert!(packed(format!("{SAID}{}", " no".repeat(100)).as_bytes()) > MOST_PACKED);
        // A short answer that is said twice is none.
        assert!(packed(b" Yes. Yes.") < 1.5 && packed(b"") == 0.0);
        // The longest match there is.
        assert!(packed(&[b'a'; 2000]) > 60.0);
    }

    #[test]
    fn ordinary_speech_is_written_once() {
        let (found, measured) = of(&[(SAID, 0.0)]);
        assert_eq!((found.text.as_str(), found.temperature), (SAID, 0.0));
        assert_eq!(measured, [false]);
    }

    #[test]
    fn a_loop_is_written_again_until_it_is_none_and_likely() {
        let looped = " you".repeat(100);
        let (found, measured) =
            of(&[(&looped, 0.0), (&looped, -0.1), ("xqz", -4.0), (SAID, -0.6), ("never", 0.0)]);
        assert_eq!((found.text.as_str(), found.temperature), (SAID, 0.6));
        assert_eq!(measured, [false, true, true, true]);
    }

    #[test]
    fn where_nothing_is_good_the_least_bad_stays() {
        let looped = |times: usize| " you".repeat(times);
        let [a, b, c] = [200, 50, 100].map(looped);
        let all = [(a.as_str(), 0.0), (&c, -0.1), (&b, -2.0), (&c, -0.1), (&a, -0.2), (&a, 0.0)];
        assert_eq!(of(&all).0.text, b);
        let all =
            [(a.as_str(), 0.0), ("one", -3.0), ("two", -1.5), (&b, 0.0), (&c, 0.0), (&c, 0.0)];
        assert_eq!(of(&all).0.text, "two");
    }
}
