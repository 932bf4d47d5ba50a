//! What one flow of numbered datagrams tells of the way that it goes.

use std::{ops::Range, time::Duration};

/// Numbers that never arrived, and for how long none did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    pub numbers: Range<u64>,
    /// By the sender's clock, from the last that arrived to the next: a receiver that gets no processor
    /// makes it no longer.
    pub lasted: Duration,
}

/// What a receiver knows of a flow.
#[derive(Debug, Default)]
pub struct Heard {
    /// One more than the highest number that arrived.
    next: u64,
    /// When the last one was sent; nothing before the first.
    sent_at: Option<Duration>,
    holes: Vec<Hole>,
    pub received: u64,
    pub twice: u64,
    pub late: u64,
}

impl Heard {
    pub fn note(&mut self, number: u64, sent_at: Duration) {
        if number < self.next {
            return self.note_late(number);
        }
        if number > self.next {
            let since = self.sent_at.unwrap_or(sent_at);
            self.holes.push(Hole {
                numbers: self.next..number,
                lasted: sent_at.saturating_sub(since),
            });
        }
        self.received += 1;
        self.next = number + 1;
        self.sent_at = Some(sent_at);
    }

    fn note_late(&mut self, number: u64) {
        let Some(at) = self.holes.iter().position(|hole| hole.numbers.contains(&number)) else {
            self.twice += 1;
            return;
        };
        let hole = self.holes.remove(at);
        let parts = [hole.numbers.start..number, number + 1..hole.numbers.end];
        let left = parts.into_iter().filter(|part| !part.is_empty());
        let lasted = hole.lasted;
        self.holes.extend(left.map(|numbers| Hole { numbers, lasted }));
        self.received += 1;
        self.late += 1;
    }

    /// From now on it counts for how long nothing arrives: the sender paused.
    pub fn resume(&mut self, now: Duration) {
        self.sent_at = Some(now);
    }

    /// Whether everything before this number has arrived or will not.
    pub fn is_past(&self, number: u64) -> bool {
        self.next > number
    }

    /// The holes that begin among these numbers.
    pub fn holes_in(&self, numbers: Range<u64>) -> impl Iterator<Item = &Hole> {
        let late = self.holes.iter().rev();
        late.filter(move |hole| numbers.contains(&hole.numbers.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn holes_are_as_long_as_nothing_arrived_and_close_for_what_is_late() {
        let mut heard = Heard::default();
        for number in [0, 1, 5, 6] {
            heard.note(number, ms(10 * number));
        }
        let hole = |numbers: Range<u64>| Hole {
            numbers,
            lasted: ms(40),
        };
        let holes = |heard: &Heard| heard.holes_in(0..100).cloned().collect::<Vec<_>>();
        assert_eq!(holes(&heard), [hole(2..5)]);
        assert_eq!(heard.holes_in(3..100).count(), 0);
        heard.note(3, ms(30));
        assert_eq!(holes(&heard), [hole(4..5), hole(2..3)]);
        heard.note(2, ms(20));
        heard.note(4, ms(40));
        assert_eq!((holes(&heard), heard.late, heard.twice), (vec![], 3, 0));
        heard.note(4, ms(40));
        assert_eq!((heard.received, heard.twice), (7, 1));
        assert!(heard.is_past(6) && !heard.is_past(7));
    }

    #[test]
    fn a_pause_of_the_sender_is_no_hole() {
        let mut heard = Heard::default();
        heard.note(0, ms(0));
        heard.resume(ms(1000));
        heard.note(2, ms(1010));
        assert_eq!(heard.holes_in(0..9).next().unwrap().lasted, ms(10));
    }
}
