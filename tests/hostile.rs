//! Hostile and damaged bytes. Every decoder takes whatever comes without a panic, a hang, or more memory than a stated bound; and bits
//! that rot in any structure never give wrong data: what is lost is what was damaged, and it is named.
//!
//! The bodies in `hostile/bodies` are also those of the fuzz targets in `tests/fuzz`. `VARVE_TEST_SEED` draws other mutations.
#![cfg(test)]

#[path = "hostile/allocations.rs"]
mod allocations;
#[path = "hostile/bodies/mod.rs"]
mod bodies;
#[path = "hostile/decoders.rs"]
mod decoders;
#[path = "support/engine.rs"]
mod engine;
#[path = "hostile/mutate.rs"]
mod mutate;
#[path = "hostile/nbd_samples.rs"]
mod nbd_samples;
#[path = "hostile/regressions.rs"]
mod regressions;
#[path = "hostile/repair.rs"]
mod repair;
#[path = "hostile/rot_bytes.rs"]
mod rot_bytes;
#[path = "hostile/rot_engine.rs"]
mod rot_engine;
#[path = "hostile/rot_local.rs"]
mod rot_local;
#[path = "hostile/rot_store.rs"]
mod rot_store;
#[path = "hostile/run.rs"]
mod run;
#[path = "hostile/samples.rs"]
mod samples;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// One test for each decoder of the table.
mod bytes {
    use super::{decoders, run::run};

    #[test]
    fn hostile_a_segment() {
        run(&decoders::SEGMENT);
    }

    #[test]
    fn hostile_a_local_segment_index() {
        run(&decoders::LOCAL_SEGMENT_INDEX);
    }

    #[test]
    fn hostile_a_map_header() {
        run(&decoders::MAP_HEADER);
    }

    #[test]
    fn hostile_a_map_directory() {
        run(&decoders::MAP_DIRECTORY);
    }

    #[test]
    fn hostile_a_map_root() {
        run(&decoders::MAP_ROOT);
    }

    #[test]
    fn hostile_a_map_page() {
        run(&decoders::MAP_PAGE);
    }

    #[test]
    fn hostile_a_stored_page() {
        run(&decoders::MAP_STORED);
    }

    #[test]
    fn hostile_a_local_page() {
        run(&decoders::LOCAL_PAGE);
    }

    #[test]
    fn hostile_a_local_state() {
        run(&decoders::LOCAL_STATE);
    }

    #[test]
    fn hostile_a_manifest() {
        run(&decoders::MANIFEST);
    }

    #[test]
    fn hostile_a_snapshot_object() {
        run(&decoders::SNAPSHOT_OBJECT);
    }

    #[test]
    fn hostile_a_trace() {
        run(&decoders::TRACE);
    }

    #[test]
    fn hostile_sealed_bytes() {
        run(&decoders::SEALED);
    }

    #[test]
    fn hostile_a_store_root() {
        run(&decoders::STORE_ROOT);
    }

    #[test]
    fn hostile_a_cache_superblock() {
        run(&decoders::CACHE_SUPERBLOCK);
    }

    #[test]
    fn hostile_a_cache_chunk() {
        run(&decoders::CACHE_CHUNK);
    }

    #[test]
    fn hostile_a_settings_file() {
        run(&decoders::SETTINGS_FILE);
    }

    #[test]
    fn hostile_a_log_file() {
        run(&decoders::LOG_FILE);
    }

    #[test]
    fn hostile_an_nbd_option() {
        run(&decoders::NBD_OPTION);
    }

    #[test]
    fn hostile_nbd_requests() {
        run(&decoders::NBD_REQUESTS);
    }

    #[test]
    fn hostile_an_nbd_session() {
        run(&decoders::NBD_SESSION);
    }

    #[test]
    fn hostile_a_control_request() {
        run(&decoders::CONTROL_REQUEST);
    }

    #[test]
    fn hostile_a_bucket() {
        run(&decoders::BUCKET);
    }
}

/// What was found, so that it stays found.
mod regressions_stay_fixed {
    use super::regressions;

    #[test]
    fn entries_of_a_segment_lie_apart_and_within_a_volume() {
        regressions::entries_that_overlap();
        regressions::places_that_nothing_has();
    }

    #[test]
    fn announcements_and_counts_are_bounded() {
        regressions::an_index_that_announces_much();
        regressions::manifests_beyond_all_counts();
        regressions::logs_beyond_all_counts();
    }
}

/// Bits that rot.
mod rot {
    use super::run::beside_others;
    use super::{rot_bytes, rot_local, rot_store};

    fn wait<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        beside_others(|| runtime.block_on(work))
    }

    #[test]
    fn a_million_flips_give_no_wrong_byte() {
        let tally = beside_others(rot_bytes::damage_all);
        println!("all structures: {tally:?}");
        assert!(tally.flips >= 1_000_000 && tally.cuts_and_swaps >= 100_000);
    }

    #[test]
    fn a_damaged_object_costs_what_check_names_and_no_more() {
        let found = wait(rot_store::damage_every_object());
        println!("objects of a store: {found:?}");
        assert!(found.cases > 100 && found.partly > 15 && found.refused > 15 && found.harmless > 0);
    }

    #[test]
    fn a_damaged_index_or_cache_heals() {
        let found = wait(rot_local::damage_index_and_cache());
        println!("local index and cache: {found:?}");
        assert!(found.cases > 40 && found.at_once + found.at_second_start == found.cases);
    }

    #[test]
    fn a_damaged_log_is_told() {
        let found = wait(rot_local::damage_log());
        println!("write log: {found:?}");
        assert!(found.refused > 30 && found.at_once > 0);
    }
}
