//! What every store must do, tried on each of them, bare and in its wrappers; and what the wrappers add.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

#[path = "store/answers.rs"]
mod answers;
#[path = "store/contract.rs"]
mod contract;
#[path = "store/fitness.rs"]
mod fitness;
#[path = "store/pieces.rs"]
mod pieces;
#[path = "store/rig.rs"]
mod rig;
#[path = "store/s3.rs"]
mod s3;
#[path = "store/settling.rs"]
mod settling;

/// One test for each case of the contract and each kind of store.
macro_rules! contract {
    ($($case:ident)*) => {
        contract!(@store memory; $($case)*);
        contract!(@store memory_wrapped; $($case)*);
        contract!(@store directory; $($case)*);
        contract!(@store directory_wrapped; $($case)*);
        contract!(@store minio; $($case)*);
        contract!(@store minio_wrapped; $($case)*);
    };
    (@store $store:ident; $($case:ident)*) => {
        mod $store {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::contract::$case(&super::rig::$store().await).await;
                }
            )*
        }
    };
}

contract! {
    a_missing_object_is_not_found
    a_name_is_taken_once
    only_the_right_version_is_replaced
    nothing_is_created_by_replacing
    versions_never_repeat
    of_eight_creators_one_wins
    of_eight_changers_one_wins
    no_update_is_lost
    readers_see_whole_versions
    ranges_hold_what_was_asked_for
    pieces_hold_what_was_asked_for
    an_empty_object_is_an_object
    long_bodies_survive
    deleting_twice_is_deleting_once
    listings_are_sorted_and_complete
    the_probe_is_content
}
