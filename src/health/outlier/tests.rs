//! Which query times make a peer slow: a table.

use std::iter::repeat_n;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::*;

const RULE: Rule = Rule { factor: 3.0, difference: Duration::from_millis(1) };

/// This many query times of so many milliseconds.
fn times(count: usize, millis: f64) -> Vec<u32> {
    repeat_n(micros(Duration::from_secs_f64(millis / 1000.0)), count).collect()
}

/// As many of each of two query times.
fn mix(count: usize, millis: [f64; 2]) -> Vec<u32> {
    millis.into_iter().flat_map(|millis| times(count, millis)).collect()
}

/// Returns the slow peer among peers with these query times. Of a known slow peer nothing is given.
fn outlier(peers: &[Option<Vec<u32>>]) -> Option<usize> {
    let sample = |times: &Option<Vec<u32>>| Sample {
        is_slow: times.is_none(),
        times: times.clone().unwrap_or_default(),
    };
    let mut samples: Vec<Sample> = peers.iter().map(sample).collect();
    for sample in &mut samples {
        sample.times.shuffle(&mut SmallRng::seed_from_u64(1));
    }
    find_outlier(RULE, &mut samples).map(|outlier| outlier.peer)
}

#[test]
fn peer_is_slow_if_its_middle_and_a_rank_test_say_so() {
    let few = || times(9, 2.0);
    let many = || times(30, 2.0);
    let cases = [
        ("equal", vec![many(), many(), many()], None),
        ("ten times slower", vec![many(), times(9, 20.0), many()], Some(1)),
        ("too few for the test", vec![times(8, 2.0), times(8, 20.0), times(8, 2.0)], None),
        ("just enough for the test", vec![few(), times(9, 20.0), few()], Some(1)),
        ("too few at all", vec![times(7, 2000.0), times(500, 2.0), times(500, 2.0)], None),
        ("1.3 times slower", vec![times(300, 2.6), times(300, 2.0), times(300, 2.0)], None),
        ("three times slower", vec![times(300, 6.0), times(300, 2.0), times(300, 2.0)], None),
        ("3.1 times slower", vec![times(300, 6.2), times(300, 2.0), times(300, 2.0)], Some(0)),
        ("less than 1 ms slower", vec![times(300, 1.05), times(300, 0.1), times(300, 0.1)], None),
        (
            "more than 1 ms slower",
            vec![times(300, 1.15), times(300, 0.1), times(300, 0.1)],
            Some(0),
        ),
        ("one of two", vec![times(20, 20.0), times(20, 2.0)], Some(0)),
        ("alone", vec![times(20, 20.0)], None),
        ("two of three", vec![times(30, 20.0), times(30, 20.0), many()], None),
        (
            "two of four",
            vec![times(60, 20.0), times(60, 22.0), times(60, 2.0), times(60, 2.0)],
            Some(1),
        ),
        (
            "half of the work long, and by chance one peer's middle",
            vec![
                mix(30, [1.0, 100.0]),
                [mix(30, [1.0, 100.0]), times(1, 100.0)].concat(),
                mix(30, [1.0, 100.0]),
            ],
            None,
        ),
        (
            "half of the work long, and a peer 1.3 times slower, by chance with its middle",
            vec![
                [mix(30, [1.0, 100.0]), times(1, 1.0)].concat(),
                [mix(30, [1.3, 130.0]), times(1, 130.0)].concat(),
                [mix(30, [1.0, 100.0]), times(1, 1.0)].concat(),
            ],
            None,
        ),
        (
            "half of the work long, and a peer ten times slower",
            vec![
                [mix(30, [1.0, 100.0]), times(1, 1.0)].concat(),
                [mix(30, [10.0, 1000.0]), times(1, 1000.0)].concat(),
                [mix(30, [1.0, 100.0]), times(1, 1.0)].concat(),
            ],
            Some(1),
        ),
        (
            "some of the work long",
            vec![[times(30, 2.0), times(10, 500.0)].concat(), many(), many()],
            None,
        ),
        ("a held worker", vec![[times(8, 2.0), times(1, 600_000.0)].concat(), few(), few()], None),
        ("weights of 1 and 10", vec![times(9, 20.0), times(90, 2.0), times(90, 2.0)], Some(0)),
        ("the heavy one of two", vec![times(90, 20.0), times(9, 2.0)], Some(0)),
    ];
    for (case, peers, expected) in cases {
        let peers: Vec<_> = peers.into_iter().map(Some).collect();
        assert_eq!(outlier(&peers), expected, "{case}");
    }
}

#[test]
fn at_most_half_of_the_peers_are_slow() {
    let (slow, fast) = (|| Some(times(60, 20.0)), || Some(times(60, 2.0)));
    assert_eq!(outlier(&[None, slow()]), None, "one of two is slow already");
    assert_eq!(outlier(&[None, slow(), fast()]), None, "one of three");
    assert_eq!(outlier(&[None, slow(), fast(), fast()]), Some(1), "one of four");
    assert_eq!(outlier(&[None, None, slow(), fast(), fast()]), None, "two of five");
}

#[test]
fn chance_is_that_of_the_hypergeometric_distribution() {
    let (long, short) = (|count| times(count, 9.0), |count| times(count, 1.0));
    let is_near = |chance: f64, expected: f64| (chance / expected - 1.0).abs() < 1e-9;
    assert!(is_near(chance(&long(8), &short(16)), 1.0 / 735_471.0), "one order of 24 over 8");
    assert!(is_near(chance(&long(9), &short(18)), 1.0 / 4_686_825.0), "one order of 27 over 9");
    // Three of four own among the longest four of eight: 16 + 1 of 70.
    let own = [long(3), short(1)].concat();
    let others = [long(1), times(3, 2.0)].concat();
    assert!(is_near(chance(&own, &others), 17.0 / 70.0));
    assert!(is_near(chance(&short(20), &short(20)), 1.0), "equal times are no evidence");
    assert!(is_near(chance(&short(20), &long(20)), 1.0), "nor are shorter ones");
    assert!(chance(&long(2000), &short(2000)) < 1e-300, "many times do not overflow");
}
