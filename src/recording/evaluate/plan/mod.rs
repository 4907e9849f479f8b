//! Stub.
use std::collections::BTreeMap;
use std::time::Duration;
use super::spans::{AttrIndex, ChildCounts, Span};
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WorkerId(u32);
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task { pub(super) spans: Option<Vec<Span>>, pub(super) catch: bool }
pub(super) enum Next { Task(Task), Wait, End }
pub(super) enum LineEnd { Finished, GaveUp, GaveUpSet(AttrIndex), Again { catch: bool, fresh: bool }, Alone, Fewer }
#[derive(Debug)]
pub(super) struct Schedule { most: usize, budget: u64, counts: ChildCounts, pending: Vec<Task>, workers: BTreeMap<WorkerId, State>, ids: u32, known: u64, begun: u64, alone: bool }
#[derive(Debug, Default)]
struct State { task: Option<Task>, at: Option<AttrIndex>, meta: bool, begun: u32, spent: bool }
impl Task {
  pub(super) fn everything() -> Self { Self { spans: None, catch: false } }
  pub(super) fn spans(spans: Vec<Span>) -> Self { Self { spans: Some(spans), catch: false } }
}
impl Schedule {
  pub(super) fn part_of_one(&self) -> u64 { self.budget / self.most as u64 }
  pub(super) fn new(most: usize, budget: u64) -> Self { Self { most, budget, counts: ChildCounts::new(), pending: vec![], workers: BTreeMap::new(), ids: 0, known: 0, begun: 0, alone: false } }
  pub(super) fn plan(&mut self, tasks: Vec<Task>) { self.pending = tasks; }
  pub(super) fn open(&mut self, _now: Duration) -> Option<WorkerId> {
    if self.pending.is_empty() || !self.workers.is_empty() { return None; }
    let id = WorkerId(self.ids); self.ids += 1; self.workers.insert(id, State::default()); Some(id) }
  pub(super) fn part(&self, _w: WorkerId) -> u64 { self.budget }
  pub(super) fn is_alone(&self, _w: WorkerId) -> bool { self.alone }
  pub(super) fn most(&self) -> usize { self.most }
  pub(super) fn has_memory_limit(&self) -> bool { self.budget != u64::MAX }
  pub(super) fn next(&mut self, w: WorkerId, _resident: Option<u64>, _now: Duration) -> Next {
    let Some(s) = self.workers.get_mut(&w) else { return Next::End };
    if s.spent { return Next::End }
    match self.pending.pop() { Some(t) => { s.task = Some(t.clone()); s.at = None; s.meta = false; Next::Task(t) } None => Next::End } }
  pub(super) fn begin(&mut self, w: WorkerId, path: AttrIndex, _now: Duration) -> bool { if let Some(s) = self.workers.get_mut(&w) { s.at = Some(path); s.meta = false; s.begun += 1; } self.begun += 1; true }
  pub(super) fn set(&mut self, _w: WorkerId, path: AttrIndex, count: u32) { self.counts.insert(path.clone(), count); self.known += u64::from(count);
     if count > 0 { self.pending.push(Task { spans: Some(vec![Span { at: path, from: 0, to: count, count }]), catch: false }); } }
  pub(super) fn begin_meta(&mut self, w: WorkerId) { if let Some(s) = self.workers.get_mut(&w) { s.meta = true; } }
  pub(super) fn is_in_meta(&self, w: WorkerId) -> bool { self.workers.get(&w).is_some_and(|s| s.meta) }
  pub(super) fn exclude(&mut self) { self.begun += 1; }
  pub(super) fn at(&self, w: WorkerId) -> AttrIndex { self.workers.get(&w).and_then(|s| s.at.clone()).unwrap_or_default() }
  pub(super) fn begun(&self, w: WorkerId) -> u32 { self.workers.get(&w).map_or(0, |s| s.begun) }
  pub(super) fn task(&self, w: WorkerId) -> Option<&Task> { self.workers.get(&w)?.task.as_ref() }
  pub(super) fn ended(&mut self, w: WorkerId, how: LineEnd, gone: bool, _now: Duration) {
    let Some(s) = self.workers.get_mut(&w) else { return };
    let task = s.task.take(); let at = s.at.take();
    let mut rest = vec![]; 
    if let (Some(Task { spans: Some(spans), .. }), Some(at)) = (&task, &at) {
      let (set, number) = at.split().unwrap();
      let i = spans.iter().position(|s| s.at == set && s.from <= number && number < s.to).unwrap();
      let mut first = spans[i].clone(); first.from = number + 1; if first.from < first.to { rest.push(first); }
      rest.extend(spans[i+1..].iter().cloned());
    }
    let again = |catch| at.as_ref().and_then(|at| Span::of(at, &self.counts)).map_or_else(|| task.clone().map(|t| Task { catch, ..t }), |span| Some(Task { spans: Some(vec![span]), catch }));
    match how { LineEnd::Finished => {}
      LineEnd::GaveUp => { if !rest.is_empty() { self.pending.push(Task { spans: Some(rest), catch: false }); } }
      LineEnd::GaveUpSet(p) => { if !rest.is_empty() { self.pending.push(Task { spans: Some(rest), catch: false }); }
         for t in &mut self.pending { if let Some(spans) = &mut t.spans { spans.retain(|s| !s.at.is_at_or_below(&p)); } }
         self.pending.retain(|t| t.spans.as_ref().is_none_or(|s| !s.is_empty())); }
      LineEnd::Again { catch, fresh } => { if !rest.is_empty() { self.pending.push(Task { spans: Some(rest), catch: false }); } let t = again(catch); self.pending.extend(t); s.spent = fresh; }
      LineEnd::Alone => { if !rest.is_empty() { self.pending.push(Task { spans: Some(rest), catch: false }); } let t = again(false); self.pending.extend(t); s.spent = true; self.alone = true; }
      LineEnd::Fewer => { self.most -= 1; self.pending.extend(task); s.spent = true; } }
    if gone { self.workers.remove(&w); } }
  pub(super) fn gone(&mut self, w: WorkerId) { self.workers.remove(&w); }
  pub(super) fn span(&self, path: &AttrIndex) -> Option<Span> { Span::of(path, &self.counts) }
  pub(super) fn reopen(&mut self, path: &AttrIndex) -> Option<Span> { self.begun -= 1; self.span(path) }
  pub(super) fn names(&self) -> (u64, u64) { (self.begun, self.known.max(self.begun)) }
}
