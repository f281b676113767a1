//! Random inputs for tests.

use std::env;
use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use rand::rngs::{SmallRng, SysRng};
use rand::{RngExt, SeedableRng, TryRng};

/// The number of inputs of each test.
const CASES: u64 = 256;

/// The seed of the first input, in place of a random one.
const SEED: &str = "DIESEL_PEERS_TEST_SEED";

pub(crate) const LOWERCASE: &str = "abcdefghijklmnopqrstuvwxyz";

/// Runs `test` with many random inputs, each of which has a seed of its own. Before a failure the seed and
/// the input are printed; the environment variable `DIESEL_PEERS_TEST_SEED` repeats it.
pub(crate) fn for_each_case<T: Debug>(generate: impl Fn(&mut SmallRng) -> T, test: impl Fn(&T)) {
    let given = env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let first: u64 = given.unwrap_or_else(|| SysRng.try_next_u64().expect("the system has some"));
    for number in 0..CASES {
        let seed = first.wrapping_add(number);
        let case = generate(&mut SmallRng::seed_from_u64(seed));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(&case))) {
            eprintln!("{SEED}={seed} repeats the failure of this case: {case:?}");
            resume_unwind(panic);
        }
    }
}

/// Returns one of the choices.
pub(crate) fn one_of<T: Copy>(rng: &mut SmallRng, choices: &[T]) -> T {
    choices[rng.random_range(0..choices.len())]
}

/// Returns a value in half of the cases.
pub(crate) fn maybe<T>(rng: &mut SmallRng, value: impl FnOnce(&mut SmallRng) -> T) -> Option<T> {
    rng.random_bool(0.5).then(|| value(rng))
}

/// Returns a random number of values.
pub(crate) fn several<T>(
    rng: &mut SmallRng,
    count: RangeInclusive<usize>,
    value: impl Fn(&mut SmallRng) -> T,
) -> Vec<T> {
    (0..rng.random_range(count)).map(|_| value(rng)).collect()
}

/// Returns a text of a random length in this alphabet.
pub(crate) fn text_of(rng: &mut SmallRng, alphabet: &str, length: RangeInclusive<usize>) -> String {
    let letters: Vec<char> = alphabet.chars().collect();
    several(rng, length, |rng| one_of(rng, &letters)).into_iter().collect()
}

/// Returns a text of a random length, of any characters but control characters.
pub(crate) fn any_text(rng: &mut SmallRng, length: RangeInclusive<usize>) -> String {
    let letter = |rng: &mut SmallRng| {
        loop {
            let letter = match rng.random_range(0..4) {
                0 => char::from(rng.random_range(b' '..=b'~')),
                // The alphabets of Europe.
                1 => rng.random_range('\u{a0}'..='\u{5ff}'),
                2 => one_of(rng, &['%', '/', ':', '@', '\\', '\'', '"', '\u{202e}', '\u{1f600}']),
                _ => rng.random_range('\u{a0}'..=char::MAX),
            };
            if !letter.is_control() {
                return letter;
            }
        }
    };
    several(rng, length, letter).into_iter().collect()
}
