//! Time tells nothing of another account either: an id that is another's takes as long as one that nobody has.

use std::time::Instant;

use backstamp_tests::Seed;
use backstamp_tests::contract::{event, minutes_ago, new_id};
use backstamp_tests::model::Endpoint;
use backstamp_tests::stack::{Stack, path};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::json;

use super::wire::Wire;
use super::{is_full, unlimited};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_time_tells_anothers_ids_from_unknown_ones() {
    let (pairs, p_min) = if is_full() { (10_000, 0.01) } else { (300, 0.000_1) };
    let seed = Seed::from_environment();
    let mut rng = seed.rng(5000);
    let stack = unlimited().await;
    let (account, other) = (stack.account().await, stack.account().await);
    // Every id is asked for once, so that nothing remembers it.
    let foreign: Vec<String> = (0..pairs).map(|_| new_id()).collect();
    for some in foreign.chunks(1000) {
        let events: Vec<_> = some
            .iter()
            .map(|id| event(id, "open", minutes_ago(1), &json!({ "contact_id": id, "campaign_id": id })))
            .collect();
        account.publish(&events).await;
    }
    account.settle().await;
    account.has_total(&path(Endpoint::Campaign, &foreign[pairs - 1], ""), 1).await;
    other
        .publish(&[event(
            "own",
            "open",
            minutes_ago(1),
            &json!({ "contact_id": new_id(), "campaign_id": "own" }),
        )])
        .await;
    other.campaign_has("own", &["own"]).await;
    for (what, status) in [("campaign", 404), ("contact", 404), ("contact of a campaign", 200)] {
        let target = |id: &str| match what {
            "campaign" => path(Endpoint::Campaign, id, ""),
            "contact" => path(Endpoint::Contact, id, ""),
            _ => path(Endpoint::Campaign, "own", &format!("contact_id={id}")),
        };
        let mut p = measure(&stack, &other.key, &foreign, target, status, &mut rng).await;
        if p <= p_min {
            // One of a hundred is below 0.01 by chance. None of ten thousand is so twice.
            eprintln!("{what}: p = {p:.4}, once more");
            p = measure(&stack, &other.key, &foreign, target, status, &mut rng).await;
        }
        eprintln!("{what}: {pairs} pairs, Mann-Whitney p = {p:.4}");
        assert!(p > p_min, "{what}: p = {p}");
    }
}

/// Asks for each of `foreign` and, before or behind it, for an id that nobody has. Returns how likely times that differ so much are if
/// there is no difference.
async fn measure(
    stack: &Stack,
    key: &str,
    foreign: &[String],
    target: impl Fn(&str) -> String,
    status: u16,
    rng: &mut StdRng,
) -> f64 {
    let mut wire = Wire::to(stack.url()).await;
    let (mut of_foreign, mut of_unknown) = (Vec::new(), Vec::new());
    for id in foreign {
        let unknown = new_id();
        let mut pair = [(id, &mut of_foreign), (&unknown, &mut of_unknown)];
        if rng.random() {
            pair.reverse();
        }
        for (id, times) in pair {
            let get =
                format!("GET {} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n", target(id));
            let begun = Instant::now();
            wire.send(&get).await;
            let answer = wire.answer().await.expect("an answer");
            times.push(begun.elapsed().as_secs_f64());
            assert_eq!(answer.status, status, "{}", answer.body);
        }
    }
    mann_whitney(&of_foreign, &of_unknown)
}

/// How likely two samples differ at least as much in rank if both are drawn alike: the U test of Mann and Whitney, two-sided, by the
/// normal approximation with a correction for ties.
fn mann_whitney(one: &[f64], other: &[f64]) -> f64 {
    let (m, n) = (one.len() as f64, other.len() as f64);
    let mut all: Vec<(f64, bool)> =
        one.iter().map(|value| (*value, true)).chain(other.iter().map(|value| (*value, false))).collect();
    all.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let (mut rank_sum, mut ties, mut before) = (0.0, 0.0, 0.0);
    for equal in all.chunk_by(|(a, _), (b, _)| a == b) {
        let count = equal.len() as f64;
        rank_sum +=
            (before + (count + 1.0) / 2.0) * equal.iter().filter(|(_, is_one)| *is_one).count() as f64;
        ties += count * count * count - count;
        before += count;
    }
    let u = rank_sum - m * (m + 1.0) / 2.0;
    let total = m + n;
    let variance = m * n / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    if variance <= 0.0 {
        return 1.0;
    }
    let z = ((u - m * n / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    erfc(z / std::f64::consts::SQRT_2)
}

/// The complementary error function of `x`, not negative (Abramowitz and Stegun, 7.1.26: within 1.5e-7).
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let factors = [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    factors.iter().fold(0.0, |sum, factor| (sum + factor) * t) * (-x * x).exp()
}

/// Against the same formula worked out apart, with an exact error function.
#[test]
fn the_u_test_is_the_known_one() {
    let near = |p: f64, known: f64| assert!((p - known).abs() < 1e-4, "{p} is not {known}");
    near(mann_whitney(&[1.0, 2.0, 3.0, 4.0, 5.0], &[6.0, 7.0, 8.0, 9.0, 10.0]), 0.012_186);
    near(mann_whitney(&[1.0, 2.0, 2.0, 3.0], &[2.0, 3.0, 3.0, 4.0]), 0.172_034);
    near(mann_whitney(&[1.0; 4], &[1.0; 4]), 1.0);
}

/// And it finds a difference of a tenth of what single times vary by.
#[test]
fn the_u_test_finds_a_small_difference() {
    let mut rng = Seed::from_environment().rng(5001);
    let mut draw = |more: f64| (0..10_000).map(|_| rng.random::<f64>() + more).collect::<Vec<f64>>();
    let (one, alike, later) = (draw(0.0), draw(0.0), draw(0.03));
    assert!(mann_whitney(&one, &alike) > 0.000_1);
    assert!(mann_whitney(&one, &later) < 0.000_1);
}
