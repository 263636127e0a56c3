//! Which segments to empty next.
//!
//! By benefit against cost, as Rosenblum and Ousterhout chose for LFS ("The design and implementation of a log-structured file system",
//! 1992): the space that comes free, times the age of the segment (what has lived long goes on living), over what has to be read and written.

use crate::clean::census::{Census, live_bytes};
use crate::format::census::ObjectAt;

/// How clean it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    /// Segments may take so many hundredths of what is in use in them.
    pub percent: u64,
    /// And so many bytes more: a small volume need not be clean to the last segment.
    pub slack: u64,
    /// Segments of which more than so many hundredths are in use are left alone: too much would be copied for too little.
    pub fullest: u64,
}

impl Goal {
    /// What segments may take that hold `live` bytes in use.
    pub fn allowed(&self, live: u64) -> u64 {
        (live.saturating_mul(self.percent) / 100).saturating_add(self.slack)
    }
}

/// The segments to be emptied next, best first: until the goal is reached, or they hold `blocks_max` blocks in use; none if it is reached
/// already. `is_barred` says which to pass over.
pub fn choose(census: &Census, goal: Goal, blocks_max: u64, is_barred: impl Fn(ObjectAt) -> bool) -> Vec<ObjectAt> {
    let totals = census.totals();
    let allowed = goal.allowed(totals.live);
    if totals.held <= allowed {
        return Vec::new();
    }
    let held: Vec<_> = census.segments().filter(|(_, counted)| counted.dead_at.is_none()).collect();
    let count = held.len();
    let mut candidates: Vec<(f64, ObjectAt, u64, u64)> = held
        .into_iter()
        .enumerate()
        .filter(|(_, (at, counted))| {
            let is_too_full = u64::from(counted.live) * 100 > u64::from(counted.units) * goal.fullest;
            !is_too_full && !is_barred(*at)
        })
        .map(|(rank, (at, counted))| {
            let used = f64::from(counted.live) / f64::from(counted.units.max(1));
            let score = (1.0 - used) * (count - rank) as f64 / (1.0 + used);
            (score, at, u64::from(counted.live), u64::from(counted.bytes) - live_bytes(counted))
        })
        .collect();
    candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let (mut chosen, mut blocks, mut freed) = (Vec::new(), 0, 0);
    for (_, at, live, free) in candidates {
        let is_full = blocks > 0 && blocks + live > blocks_max;
        if is_full || freed >= totals.held - allowed {
            break;
        }
        chosen.push(at);
        blocks += live;
        freed += free;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Epoch;

    const GOAL: Goal = Goal { percent: 140, slack: 0, fullest: 90 };

    fn at(number: u64) -> ObjectAt {
        ObjectAt { epoch: Epoch(1), number }
    }

    fn census(live: &[u64]) -> Census {
        let mut census = Census::default();
        for (number, live) in live.iter().enumerate() {
            census.add_segment(at(number as u64), 1000, 100, *live);
        }
        census
    }

    #[test]
    fn nothing_is_chosen_while_the_goal_is_reached() {
        assert!(choose(&census(&[100, 80, 60]), GOAL, 1000, |_| false).is_empty());
        assert!(choose(&census(&[]), GOAL, 1000, |_| false).is_empty());
        assert!(choose(&census(&[0]), Goal { slack: 1000, ..GOAL }, 1000, |_| false).is_empty());
    }

    #[test]
    fn the_emptiest_and_oldest_come_first_and_no_more_than_are_needed() {
        assert_eq!(choose(&census(&[90, 0, 90, 60, 90]), GOAL, 1000, |_| false), [at(1)]);
        assert_eq!(choose(&census(&[30, 30, 30]), GOAL, 1000, |_| false), [at(0), at(1), at(2)]);
        assert_eq!(choose(&census(&[30, 30, 30]), GOAL, 1000, |barred| barred == at(0)), [at(1), at(2)]);
        assert_eq!(choose(&census(&[30, 30, 30]), GOAL, 50, |_| false), [at(0)], "no more than fits at once");
        assert_eq!(choose(&census(&[95, 0, 95]), Goal { percent: 100, ..GOAL }, 1000, |_| false), [at(1)]);
    }
}
