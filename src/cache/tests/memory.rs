//! One fetch for each missing frame, and the budget of the memory part.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Barrier;

use super::world::frame;
use crate::cache::memory::{Claim, MemoryCache};
use crate::units::ByteLen;

fn cache(budget: u64) -> Arc<MemoryCache> {
    Arc::new(MemoryCache::new(ByteLen(budget)))
}

fn lead(cache: &Arc<MemoryCache>, number: u64) -> crate::cache::Lead {
    match cache.claim(frame(number)) {
        Claim::Lead(lead) => lead,
        Claim::Ready(_) | Claim::Wait(_) => panic!("the frame is missing and nobody fetches it"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn exactly_one_of_sixteen_fetches() {
    let cache = cache(16 << 20);
    for number in 0..200 {
        let fetches = Arc::new(AtomicUsize::new(0));
        let barrier = Arc::new(Barrier::new(16));
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let (cache, fetches, barrier) = (Arc::clone(&cache), Arc::clone(&fetches), Arc::clone(&barrier));
                tokio::spawn(async move {
                    barrier.wait().await;
                    match cache.claim(frame(number)) {
                        Claim::Ready(bytes) => bytes,
                        Claim::Wait(wait) => wait.await.unwrap(),
                        Claim::Lead(lead) => {
                            fetches.fetch_add(1, Ordering::Relaxed);
                            tokio::task::yield_now().await;
                            let bytes = Bytes::from(number.to_string());
                            lead.fill(bytes.clone());
                            bytes
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), number.to_string());
        }
        assert_eq!(fetches.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dropped_lead_wakes_those_who_wait_and_one_of_them_leads() {
    let cache = cache(16 << 20);
    let first = lead(&cache, 1);
    assert_eq!(first.frame(), frame(1));
    let fetches = Arc::new(AtomicUsize::new(0));
    let waiting = Arc::new(Barrier::new(17));
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (cache, fetches, waiting) = (Arc::clone(&cache), Arc::clone(&fetches), Arc::clone(&waiting));
            tokio::spawn(async move {
                let mut claim = cache.claim(frame(1));
                waiting.wait().await;
                let mut gave_up = 0;
                loop {
                    match claim {
                        Claim::Ready(bytes) => return (bytes, gave_up),
                        Claim::Lead(lead) => {
                            fetches.fetch_add(1, Ordering::Relaxed);
                            lead.fill(Bytes::from_static(b"found"));
                        }
                        Claim::Wait(wait) => match wait.await {
                            Some(bytes) => return (bytes, gave_up),
                            None => gave_up += 1,
                        },
                    }
                    claim = cache.claim(frame(1));
                }
            })
        })
        .collect();
    waiting.wait().await;
    drop(first);
    for task in tasks {
        assert_eq!(task.await.unwrap(), (Bytes::from_static(b"found"), 1));
    }
    assert_eq!(fetches.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_frame_that_memory_cannot_keep_still_reaches_those_who_wait() {
    let cache = cache(0);
    let lead = lead(&cache, 1);
    let Claim::Wait(wait) = cache.claim(frame(1)) else { panic!("somebody fetches it") };
    lead.fill(Bytes::from_static(b"short-lived"));
    assert_eq!(wait.await.as_deref(), Some(&b"short-lived"[..]));
    assert!(!cache.contains(frame(1)));
    assert_eq!(cache.statistics().used.0, 0);
}

#[test]
fn never_over_budget() {
    for budget in [0, 1000, 100_000, 1 << 20, (8 << 20) + 12_345] {
        let cache = cache(budget);
        for number in 0..2000u64 {
            cache.insert(frame(number), vec![0; (number * 7919 % 32_768) as usize].into());
            assert!(cache.statistics().used.0 <= budget);
        }
        assert!(budget < 1 << 20 || cache.statistics().used.0 > budget / 2, "the budget is used");
    }
}

#[test]
fn hot_frames_survive_a_scan_of_four_times_the_budget() {
    let cache = cache(8 << 20);
    let bytes = Bytes::from(vec![0u8; 32 << 10]);
    let read = |cache: &MemoryCache| (0..100).filter(|&number| cache.get(frame(number)).is_some()).count();
    for _ in 0..3 {
        for number in 0..100 {
            if cache.get(frame(number)).is_none() {
                cache.insert(frame(number), bytes.clone());
            }
        }
    }
    for number in 0..4 * 256 {
        cache.insert(frame(10_000 + number), bytes.clone());
    }
    let survived = read(&cache);
    assert!(survived >= 90, "{survived} of 100");
}

/// Reads a frame as the read path does, and says whether it was there.
fn read(cache: &Arc<MemoryCache>, number: u64) -> bool {
    match cache.claim(frame(number)) {
        Claim::Ready(_) => true,
        Claim::Lead(lead) => {
            lead.fill(vec![0; 32 << 10].into());
            false
        }
        Claim::Wait(_) => unreachable!("there is one reader"),
    }
}

#[test]
fn what_is_read_ahead_is_there_when_the_reader_comes() {
    let cache = cache(8 << 20);
    // Frames that come back after they left: these once took all the room that there is for new ones.
    for number in 0..20_000 {
        read(&cache, number);
        read(&cache, number.saturating_sub(100 + number % 100));
    }
    // As much as is read ahead; the shards do not all get the same.
    let window = cache.room_for_the_new().0 / 2 / (32 << 10);
    for number in 0..window {
        read(&cache, 1_000_000 + number);
    }
    let found = (0..window).filter(|number| read(&cache, 1_000_000 + number)).count() as u64;
    assert!(found * 10 >= window * 9, "{found} of {window}");
}

#[test]
fn uses_in_a_row_push_out_nothing_that_is_in_use() {
    let cache = cache(64 << 20);
    for _ in 0..3 {
        for number in 0..1000 {
            read(&cache, number);
        }
    }
    for number in 0..4 * 2048 {
        for _ in 0..8 {
            read(&cache, 10_000 + number);
        }
    }
    let survived = (0..1000).filter(|number| cache.contains(frame(*number))).count();
    assert!(survived >= 950, "{survived} of 1000");
}

#[test]
fn what_is_asked_for_again_after_it_left_is_in_use() {
    let cache = cache(64 << 20);
    for number in 0..8000 {
        read(&cache, number);
    }
    // Not among the newest, and remembered.
    let again: Vec<u64> = (7000..7150).collect();
    for number in &again {
        read(&cache, *number);
    }
    for number in 10_000..14_000 {
        read(&cache, number);
    }
    let survived = again.iter().filter(|number| cache.contains(frame(**number))).count();
    assert!(survived >= 140, "{survived} of {}", again.len());
}
