//! Which segment to look at next, while the hints of the census may be wrong.

use crate::clean::census::Census;
use crate::format::census::ObjectAt;
use crate::units::Epoch;

/// A walk round all segments that ends when each was looked at since it was begun, and can be begun again at any time. What was not
/// looked at to the end (the store was away, say) counts as not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// At most so many steps are left.
    left: usize,
    /// The last segment that was looked at.
    last: ObjectAt,
    /// How often the walk was begun.
    begun: u64,
}

/// A step of the walk: a segment that is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Which one.
    pub at: ObjectAt,
    begun: u64,
}

impl Audit {
    /// None is under way.
    pub fn over() -> Self {
        Audit { left: 0, last: ObjectAt { epoch: Epoch(0), number: 0 }, begun: 0 }
    }

    /// True if every segment was looked at since it was begun.
    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    /// Begins with a census in which so many segments are not known to be dead; `usize::MAX` if it is not known how many.
    pub fn begin(&mut self, held: usize) {
        self.left = held;
        self.begun += 1;
    }

    /// Notes a segment that came into the census. It lies in the walk's way like the others.
    pub fn note_added(&mut self) {
        if !self.is_over() {
            self.left = self.left.saturating_add(1);
        }
    }

    /// The next step; none if it is over.
    pub fn next(&mut self, census: &Census) -> Option<Look> {
        let next = census.next_held(self.last).filter(|_| !self.is_over());
        if next.is_none() {
            self.left = 0;
        }
        next.map(|at| Look { at, begun: self.begun })
    }

    /// Notes that a step was done. It does not count if the walk was begun again meanwhile: what it saw may be from before.
    pub fn note_done(&mut self, look: Look) {
        self.last = look.at;
        if self.begun == look.begun {
            self.left = self.left.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> ObjectAt {
        ObjectAt { epoch: Epoch(1), number }
    }

    fn census_of(numbers: impl IntoIterator<Item = u64>) -> Census {
        let mut census = Census::default();
        numbers.into_iter().for_each(|number| census.add_segment(at(number), 10, 1, 1));
        census
    }

    /// Takes `steps` steps, and says which segments they were.
    fn walk(audit: &mut Audit, census: &Census, steps: usize) -> Vec<u64> {
        let mut seen = Vec::new();
        while let Some(look) = (seen.len() < steps).then(|| audit.next(census)).flatten() {
            audit.note_done(look);
            seen.push(look.at.number);
        }
        seen
    }

    #[test]
    fn every_segment_is_looked_at_once() {
        let (mut audit, census) = (Audit::over(), census_of([1, 4, 7]));
        assert_eq!(audit.next(&census), None);
        audit.begin(3);
        assert_eq!(walk(&mut audit, &census, 9), [1, 4, 7]);
        assert!(audit.is_over());
        audit.begin(usize::MAX);
        assert_eq!(audit.next(&Census::default()), None);
        assert!(audit.is_over(), "there is nothing to look at");
    }

    #[test]
    fn what_was_not_looked_at_to_the_end_is_looked_at_again() {
        let (mut audit, census) = (Audit::over(), census_of([1, 4, 7]));
        audit.begin(3);
        assert_eq!(walk(&mut audit, &census, 1), [1]);
        assert_eq!(audit.next(&census).map(|look| look.at), Some(at(4)), "the store is away");
        assert_eq!(walk(&mut audit, &census, 9), [4, 7]);
    }

    #[test]
    fn a_walk_that_is_begun_again_goes_all_the_way_round_from_where_it_is() {
        let (mut audit, census) = (Audit::over(), census_of([1, 4, 7]));
        audit.begin(3);
        assert_eq!(walk(&mut audit, &census, 1), [1]);
        let look = audit.next(&census).unwrap();
        audit.begin(3);
        audit.note_done(look);
        assert_eq!(walk(&mut audit, &census, 9), [7, 1, 4]);
    }

    #[test]
    fn segments_that_come_meanwhile_take_nobody_s_turn() {
        let (mut audit, mut census) = (Audit::over(), census_of([1, 4, 7]));
        audit.begin(3);
        assert_eq!(walk(&mut audit, &census, 2), [1, 4]);
        audit.begin(3);
        for number in [8, 9] {
            census.add_segment(at(number), 10, 1, 1);
            audit.note_added();
        }
        assert_eq!(walk(&mut audit, &census, 9), [7, 8, 9, 1, 4]);
        assert!(audit.is_over());
        audit.note_added();
        assert!(audit.is_over(), "none is under way");
    }
}
