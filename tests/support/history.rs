//! A record of every write a test made: what it was, when it was sent, and when it was acknowledged. After a crash it tells whether a disk
//! is one that could have been: nothing acknowledged is missing, and what is there is what the disk was at one moment.
//!
//! Time here is a counter of events. Writes whose sectors overlap are never in flight together, so that each sector has one order.

use std::collections::HashMap;
use std::ops::Range;

use super::client::{Client, Command, FUA};

/// The unit of the record, smaller than varve's block: writes begin and end within blocks.
pub const SECTOR: u64 = 512;

/// A generator whose sequence depends on its seed only.
pub struct Chance(u64);

impl Chance {
    /// Prints the seed, so that a failure can be repeated. `VARVE_TEST_SEED` replaces it.
    pub fn new(seed: u64) -> Chance {
        let seed = std::env::var("VARVE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(seed);
        println!("VARVE_TEST_SEED={seed}");
        Chance(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The content of a sector as write number `stamp` left it: the stamp, then bytes that follow from stamp and place.
fn sector_content(stamp: u64, sector: u64) -> [u8; SECTOR as usize] {
    let mut content = [0; SECTOR as usize];
    let seed = mix(stamp ^ mix(sector));
    for (word, bytes) in content.chunks_exact_mut(8).enumerate() {
        // Half of it compresses.
        let value = if word % 2 == 0 { seed.wrapping_add(word as u64) } else { stamp };
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    content[..8].copy_from_slice(&stamp.to_le_bytes());
    content
}

#[derive(Clone, Debug)]
struct Entry {
    sectors: Range<u64>,
    zero: bool,
    sent: u64,
    acknowledged: Option<u64>,
}

/// The record. Write number `n` (its stamp) is entry `n - 1`.
#[derive(Default)]
pub struct History {
    entries: Vec<Entry>,
    now: u64,
    /// Sectors that a request in flight touches.
    busy: HashMap<u64, usize>,
    sectors: u64,
}

impl History {
    /// For a disk of this many bytes that reads as zero.
    pub fn new(size: u64) -> History {
        History { sectors: size / SECTOR, ..History::default() }
    }

    /// The moment now: everything acknowledged so far was acknowledged before it.
    pub fn moment(&self) -> u64 {
        self.now + 1
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.entries.iter().filter(|entry| entry.acknowledged.is_some()).count()
    }

    /// How many bytes.
    pub fn acknowledged_bytes(&self) -> u64 {
        let entries = self.entries.iter().filter(|entry| entry.acknowledged.is_some());
        entries.map(|entry| (entry.sectors.end - entry.sectors.start) * SECTOR).sum()
    }

    /// Chooses a write of at most `sectors_max` sectors that overlaps none in flight, and notes it as sent.
    pub fn next_write(&mut self, chance: &mut Chance, sectors_max: u64) -> usize {
        loop {
            let count = 1 + chance.below(sectors_max);
            let start = chance.below(self.sectors - count + 1);
            let sectors = start..start + count;
            if !sectors.clone().any(|sector| self.busy.contains_key(&sector)) {
                self.now += 1;
                let index = self.entries.len();
                self.busy.extend(sectors.clone().map(|sector| (sector, index)));
                self.entries.push(Entry { sectors, zero: chance.below(16) == 0, sent: self.now, acknowledged: None });
                return index;
            }
        }
    }

    /// Sends a write of the record.
    pub fn send(&self, index: usize, client: &mut Client, flags: u16) -> std::io::Result<u64> {
        let entry = &self.entries[index];
        let offset = entry.sectors.start * SECTOR;
        let length = ((entry.sectors.end - entry.sectors.start) * SECTOR) as u32;
        if entry.zero {
            return client.send(Command::WriteZeroes, flags, offset, length, &[]);
        }
        let stamp = index as u64 + 1;
        let data: Vec<u8> = entry.sectors.clone().flat_map(|sector| sector_content(stamp, sector)).collect();
        client.send(Command::Write, flags, offset, length, &data)
    }

    /// Does to `disk` what a write does to a disk.
    pub fn apply(&self, index: usize, disk: &mut [u8]) {
        let entry = &self.entries[index];
        for sector in entry.sectors.clone() {
            let place = &mut disk[(sector * SECTOR) as usize..][..SECTOR as usize];
            match entry.zero {
                true => place.fill(0),
                false => place.copy_from_slice(&sector_content(index as u64 + 1, sector)),
            }
        }
    }

    /// Notes an acknowledgement.
    pub fn acknowledge(&mut self, index: usize) {
        self.now += 1;
        self.entries[index].acknowledged = Some(self.now);
        self.settle(index);
    }

    /// Notes that a write will not be answered any more: it may or may not have had its effect.
    pub fn settle(&mut self, index: usize) {
        for sector in self.entries[index].sectors.clone() {
            self.busy.remove(&sector);
        }
    }

    /// Checks a disk: every write acknowledged before `floor` is there (or what was written over it), no sector has what nobody wrote there,
    /// each write is there as a whole or not at all, and if a write is there, then also all that were acknowledged before it was sent.
    /// `floor` is [`History::moment`] for "everything acknowledged up to now".
    #[track_caller]
    pub fn check(&self, disk: &[u8], floor: u64) {
        let stamps = self.stamps(disk);
        // A zero may be any zero that was written there, or none: only data says for certain that a write is there.
        let certain = stamps
            .iter()
            .filter_map(|stamp| self.entries.get(stamp.checked_sub(1)? as usize))
            .filter(|entry| !entry.zero);
        let visible = certain.map(|entry| entry.sent);
        let moment = visible.max().unwrap_or(0).max(floor);
        // What each sector must at least show: the newest write that was certainly there at that moment.
        let mut wanted = vec![0_u64; self.sectors as usize];
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.acknowledged.is_some_and(|acknowledged| acknowledged < moment) {
                for sector in entry.sectors.clone() {
                    wanted[sector as usize] = index as u64 + 1;
                }
            }
        }
        let missing: Vec<String> = (0..self.sectors as usize)
            .filter(|&sector| stamps[sector] < wanted[sector])
            .map(|sector| {
                format!(
                    "sector {sector}: has write {}, misses {} ({:?})",
                    stamps[sector],
                    wanted[sector],
                    self.entries[wanted[sector] as usize - 1]
                )
            })
            .collect();
        let shown = missing.iter().take(8).cloned().collect::<Vec<_>>().join("\n");
        assert!(
            missing.is_empty(),
            "{} sectors miss writes acknowledged before moment {moment} (floor {floor}):\n{shown}",
            missing.len()
        );
        self.check_whole(&stamps);
    }

    /// The newest write that each sector can be showing; 0 for none.
    #[track_caller]
    fn stamps(&self, disk: &[u8]) -> Vec<u64> {
        assert_eq!(disk.len() as u64, self.sectors * SECTOR, "size of the disk");
        let mut newest_zero = vec![0_u64; self.sectors as usize];
        for (index, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.zero) {
            for sector in entry.sectors.clone() {
                newest_zero[sector as usize] = index as u64 + 1;
            }
        }
        let contents = disk.chunks_exact(SECTOR as usize).zip(0_u64..);
        contents
            .map(|(content, sector)| {
                if content.iter().all(|&byte| byte == 0) {
                    return newest_zero[sector as usize];
                }
                let stamp = u64::from_le_bytes(content[..8].try_into().unwrap());
                let entry = stamp.checked_sub(1).and_then(|index| self.entries.get(index as usize));
                let known = entry.is_some_and(|entry| !entry.zero && entry.sectors.contains(&sector));
                assert!(
                    known && content == sector_content(stamp, sector),
                    "sector {sector} has bytes that nobody wrote there (stamp {stamp})"
                );
                stamp
            })
            .collect()
    }

    /// Each write that shows anywhere shows everywhere, except where a later one covers it.
    #[track_caller]
    fn check_whole(&self, stamps: &[u64]) {
        let mut seen = vec![false; self.entries.len() + 1];
        for &stamp in stamps {
            seen[stamp as usize] = true;
        }
        for (index, entry) in self.entries.iter().enumerate().filter(|(index, entry)| seen[index + 1] && !entry.zero) {
            for sector in entry.sectors.clone() {
                let stamp = stamps[sector as usize];
                assert!(
                    stamp > index as u64,
                    "write {} is torn: sector {sector} still has write {stamp} ({entry:?})",
                    index + 1
                );
            }
        }
    }

    /// After a crash that the disk has survived as it is: writes that were in flight and do not show are forgotten, so that later
    /// checks know only what can be seen. Call after [`History::check`] has passed.
    pub fn settle_all(&mut self) {
        self.busy.clear();
    }
}

/// Some connections to one export, with writes in flight on each.
pub struct Load {
    clients: Vec<(Client, HashMap<u64, usize>)>,
    depth: usize,
    sectors_max: u64,
    /// One write in so many is durable when it is acknowledged; 0: none.
    one_durable_in: u64,
}

impl Load {
    pub fn new(clients: Vec<Client>, depth: usize, sectors_max: u64) -> Load {
        let clients = clients.into_iter().map(|client| (client, HashMap::new())).collect();
        Load { clients, depth, sectors_max, one_durable_in: 0 }
    }

    /// Asks for FUA with one write in so many.
    #[must_use]
    pub fn with_durable(mut self, one_in: u64) -> Load {
        self.one_durable_in = one_in;
        self
    }

    /// Sends or receives once, on a connection chosen by chance. False if a connection has broken.
    #[track_caller]
    pub fn step(&mut self, history: &mut History, chance: &mut Chance) -> bool {
        let choice = chance.below(self.clients.len() as u64) as usize;
        let (client, in_flight) = &mut self.clients[choice];
        if in_flight.len() < self.depth {
            let index = history.next_write(chance, self.sectors_max);
            let durable = self.one_durable_in > 0 && chance.below(self.one_durable_in) == 0;
            // Broken or not, the write may have arrived: it counts as sent.
            let sent = history.send(index, client, if durable { FUA } else { 0 });
            if let Ok(cookie) = sent {
                in_flight.insert(cookie, index);
            }
            return sent.is_ok();
        }
        match client.answer() {
            None => false,
            Some(answer) => {
                let index = in_flight.remove(&answer.cookie).expect("an answer to a request in flight");
                assert_eq!(answer.error, 0, "errno of an answer to a write that makes sense");
                history.acknowledge(index);
                true
            }
        }
    }

    /// Waits for every answer.
    #[track_caller]
    pub fn finish(&mut self, history: &mut History) {
        for (client, in_flight) in &mut self.clients {
            while !in_flight.is_empty() {
                let answer = client.answer().expect("the server hung up with requests in flight");
                assert_eq!(answer.error, 0, "errno of an answer to a write that makes sense");
                let index = in_flight.remove(&answer.cookie).expect("an answer to a request in flight");
                history.acknowledge(index);
            }
        }
    }

    /// After the server's death: takes the answers that it gave before, until each connection ends, and gives up on the rest.
    #[track_caller]
    pub fn wreck(mut self, history: &mut History) {
        for (client, in_flight) in &mut self.clients {
            while let Some(answer) = client.answer() {
                let index = in_flight.remove(&answer.cookie).expect("an answer to a request in flight");
                if answer.error == 0 {
                    history.acknowledge(index);
                }
            }
        }
        history.settle_all();
    }

    /// Goes on writing until no answer has come for `quiet` with all connections full: the server makes us wait.
    /// False if a connection has broken.
    #[track_caller]
    pub fn until_stalled(&mut self, history: &mut History, chance: &mut Chance, quiet: std::time::Duration) -> bool {
        loop {
            let mut answered = false;
            for (client, in_flight) in &mut self.clients {
                while in_flight.len() < self.depth {
                    let index = history.next_write(chance, self.sectors_max);
                    let Ok(cookie) = history.send(index, client, 0) else { return false };
                    in_flight.insert(cookie, index);
                }
                match client.answer_within(quiet) {
                    Ok(Some(answer)) => {
                        assert_eq!(answer.error, 0, "errno: a full log makes writers wait, it does not fail them");
                        history
                            .acknowledge(in_flight.remove(&answer.cookie).expect("an answer to a request in flight"));
                        answered = true;
                    }
                    Ok(None) => return false,
                    Err(_) => {}
                }
            }
            if !answered {
                return true;
            }
        }
    }
}
