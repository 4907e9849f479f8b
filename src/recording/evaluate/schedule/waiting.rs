//! The attributes that wait for a worker, in the order of the walk.

use std::collections::BTreeMap;

use crate::recording::evaluate::spans::{AttrIndex, Span};

/// Spans that do not overlap, by their first attribute.
#[derive(Debug, Default)]
pub(super) struct WaitingSpans {
    spans: BTreeMap<AttrIndex, Span>,
    length: u64,
}

impl WaitingSpans {
    /// How many attributes wait, without those in sets among them.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds attributes that do not wait yet.
    pub(super) fn insert(&mut self, span: Span) {
        let length = span.length();
        if length > 0 && self.spans.insert(span.start(), span).is_none() {
            self.length += length;
        }
    }

    /// Takes the first `wanted` attributes, or the last ones, in their order. A worker takes from one end, because attributes often
    /// share what they need with their neighbours.
    pub(super) fn take(&mut self, wanted: u64, from_end: bool) -> Vec<Span> {
        let mut left = u32::try_from(wanted).unwrap_or(u32::MAX);
        let mut taken: Vec<Span> = Vec::new();
        while left > 0 {
            let next = if from_end {
                self.spans.pop_last()
            } else {
                self.spans.pop_first()
            };
            let Some((_, mut span)) = next else { break };
            let mut part = span.clone();
            if span.to - span.from > left {
                if from_end {
                    part.from = span.to - left;
                    span.to = part.from;
                } else {
                    part.to = span.from + left;
                    span.from = part.to;
                }
                self.spans.insert(span.start(), span);
            }
            self.length -= part.length();
            left -= part.to - part.from;
            taken.push(part);
        }
        if from_end {
            taken.reverse();
        }
        taken.dedup_by(|span, before| {
            let continues = span.at == before.at && span.from == before.to;
            if continues {
                before.to = span.to;
            }
            continues
        });
        taken
    }

    /// Removes an attribute and what is below it. Gives how many were removed.
    pub(super) fn drop_in(&mut self, path: &AttrIndex) -> u64 {
        let before = self.length;
        let below: Vec<AttrIndex> = self
            .spans
            .range(path..)
            .take_while(|(start, _)| start.is_in(path))
            .filter(|(_, span)| span.at.is_in(path))
            .map(|(start, _)| start.clone())
            .collect();
        for start in below {
            if let Some(span) = self.spans.remove(&start) {
                self.length -= span.length();
            }
        }
        let holding = self.spans.range(..=path).next_back();
        let holding = holding.filter(|(_, span)| span.holds(path));
        if let Some(start) = holding.map(|(start, _)| start.clone())
            && let Some(span) = self.spans.remove(&start)
            && let Some((_, number)) = path.split()
        {
            self.length -= span.length();
            self.insert(Span {
                from: number + 1,
                ..span.clone()
            });
            self.insert(Span { to: number, ..span });
        }
        before - self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::evaluate::spans::tests::path;

    fn span(at: &str, from: u32, to: u32) -> Span {
        Span {
            at: path(at),
            from,
            to,
            count: 10,
        }
    }

    fn waiting() -> WaitingSpans {
        let mut waiting = WaitingSpans::default();
        for span in [span("", 3, 9), span("/1", 0, 4), span("/2", 5, 5)] {
            waiting.insert(span);
        }
        waiting
    }

    #[test]
    fn attributes_are_taken_from_either_end_in_their_order() {
        let mut waiting = waiting();
        assert_eq!(waiting.length(), 10);
        assert_eq!(waiting.take(5, false), [span("/1", 0, 4), span("", 3, 4)]);
        assert_eq!(waiting.take(2, true), [span("", 7, 9)]);
        waiting.insert(span("/8", 1, 2));
        assert_eq!(waiting.take(2, true), [span("", 6, 7), span("/8", 1, 2)]);
        assert_eq!(waiting.take(9, false), [span("", 4, 6)]);
        assert!(waiting.is_empty() && waiting.take(1, true).is_empty());
    }

    #[test]
    fn neighbouring_parts_are_taken_as_one() {
        let mut waiting = WaitingSpans::default();
        waiting.insert(span("", 3, 5));
        waiting.insert(span("", 5, 9));
        assert_eq!(waiting.take(9, true), [span("", 3, 9)]);
    }

    #[test]
    fn what_is_below_a_set_is_removed_with_it() {
        let mut waiting = waiting();
        waiting.insert(span("/1/2", 0, 3));
        assert_eq!(waiting.drop_in(&path("/1")), 7);
        assert_eq!(waiting.drop_in(&path("/4")), 1);
        assert_eq!(waiting.take(9, false), [span("", 3, 4), span("", 5, 9)]);
        assert_eq!(waiting.drop_in(&path("")), 0);
    }
}
