//! Order, loss that is told exactly, bounded memory, and wake-ups that are never missed.

#![expect(clippy::disallowed_methods, reason = "these threads stand for a program's own")]

use std::sync::atomic::Ordering;
use std::task::Wake;
use std::thread;
use std::time::Duration;

use futures::executor::block_on;
use futures::{FutureExt, StreamExt};

use super::*;

#[derive(Debug, Clone)]
struct Note {
    sequence: u64,
    bytes: usize,
}

impl Buffered for Note {
    type Event = Note;
    type Common = usize;

    fn common_bytes(bytes: &usize) -> usize {
        *bytes
    }
    fn event(&self, _: &usize) -> Arc<Note> {
        Arc::new(self.clone())
    }
    fn sequence(&self) -> u64 {
        self.sequence
    }
    fn bytes(&self) -> usize {
        self.bytes
    }
}

fn note(sequence: u64) -> Note {
    Note { sequence, bytes: 0 }
}

/// A ring of so many empty notes.
fn ring(notes_max: usize) -> Ring<Note> {
    Ring::new(notes_max * Slot::new(note(0)).bytes)
}

fn state<T>(ring: &Ring<Note>, look: impl Fn(&State<Note>) -> T) -> T {
    look(&ring.owner.shared.lock())
}

/// The events that came one by one.
fn slots(state: &State<Note>) -> Vec<&VecDeque<Slot<Note>>> {
    let events = state.chunks.iter().map(|chunk| &chunk.events);
    events.filter_map(|events| if let Events::Loose(slots) = events { Some(slots) } else { None }).collect()
}

fn wakers(ring: &Ring<Note>) -> usize {
    state(ring, |s| s.waiting.wakers.iter().flatten().count())
}

/// A drained reader as text: sequences, `-n` for n missed, and `end`.
fn drain(reader: &mut Reader<Note>) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        seen.push(match reader.try_next() {
            Poll::Ready(Some(Received::Event(event))) => event.sequence.to_string(),
            Poll::Ready(Some(Received::Lagged { missed })) => format!("-{missed}"),
            Poll::Ready(None) => "end".to_owned(),
            Poll::Pending => return seen,
        });
        if seen.last().unwrap() == "end" {
            return seen;
        }
    }
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn counting() -> (Arc<Count>, Waker) {
    let count = Arc::new(Count::default());
    (Arc::clone(&count), Waker::from(count))
}

fn poll(reader: &mut Reader<Note>, waker: &Waker) -> Poll<Option<Received<Note>>> {
    reader.poll_next_unpin(&mut Context::from_waker(waker))
}

#[test]
fn readers_get_everything_in_order_from_when_they_subscribed() {
    let ring = ring(100);
    ring.publish([note(1)]);
    let mut a = ring.subscribe();
    ring.publish([note(2), note(3)]);
    let mut b = ring.subscribe();
    ring.publish([note(4)]);
    assert_eq!(drain(&mut a), ["2", "3", "4"]);
    assert_eq!(drain(&mut b), ["4"]);
    ring.publish([]);
    assert_eq!(drain(&mut a), [""; 0]);
}

#[test]
fn a_replay_begins_after_the_given_sequence() {
    let ring = ring(100);
    ring.publish([1, 2, 2, 3].map(note));
    let replay = |sequence| drain(&mut ring.subscribe_after(sequence));
    assert_eq!(replay(0), ["1", "2", "2", "3"]);
    assert_eq!(replay(1), ["2", "2", "3"]);
    assert_eq!(replay(2), ["3"]);
    assert_eq!(replay(3), [""; 0]);
    assert_eq!(replay(9), [""; 0]);
}

#[test]
fn an_uncommitted_event_that_comes_late_does_not_break_the_replay() {
    let ring = ring(100);
    ring.publish([5, 6, 5, 7].map(note));
    assert_eq!(drain(&mut ring.subscribe_after(5)), ["6", "5", "7"]);
    assert_eq!(drain(&mut ring.subscribe_after(6)), ["7"]);
}

#[test]
fn a_replay_of_what_is_gone_says_how_many_are_missed() {
    let ring = ring(4);
    ring.publish((1..=10).map(note));
    let replay = |sequence| drain(&mut ring.subscribe_after(sequence));
    assert_eq!(replay(0), ["-6", "7", "8", "9", "10"]);
    assert_eq!(replay(4), ["-2", "7", "8", "9", "10"]);
    assert_eq!(replay(5), ["-1", "7", "8", "9", "10"]);
    assert_eq!(replay(6), ["7", "8", "9", "10"]);
    assert_eq!(replay(8), ["9", "10"]);
}

#[test]
fn what_a_replay_missed_and_what_it_then_loses_are_told_as_one() {
    let ring = ring(4);
    ring.publish((1..=10).map(note));
    let mut reader = ring.subscribe_after(4);
    ring.publish([note(11)]);
    assert_eq!(drain(&mut reader), ["-3", "8", "9", "10", "11"]);
}

#[test]
fn sparse_sequences_never_count_more_than_was_dropped() {
    let ring = ring(1);
    ring.publish([100, 200, 300].map(note));
    assert_eq!(drain(&mut ring.subscribe_after(0)), ["-2", "300"]);
}

#[test]
fn after_a_restart_the_past_is_missed_even_while_the_ring_is_empty() {
    let ring = Ring::<Note>::starting_after(1 << 20, 500);
    let mut old = ring.subscribe_after(100);
    let mut current = ring.subscribe_after(500);
    ring.publish([note(501)]);
    assert_eq!(drain(&mut old), ["-400", "501"]);
    assert_eq!(drain(&mut current), ["501"]);
}

#[test]
fn a_slow_reader_learns_exactly_how_many_it_missed() {
    let ring = ring(4);
    let mut reader = ring.subscribe();
    ring.publish((1..=4).map(note));
    let mut fresh = ring.subscribe();
    assert_eq!(drain(&mut fresh), [""; 0]);
    ring.publish((5..=1_028).map(note));
    assert_eq!(drain(&mut reader), ["-1024", "1025", "1026", "1027", "1028"]);
    assert_eq!(drain(&mut fresh), ["-1020", "1025", "1026", "1027", "1028"]);
    assert_eq!(drain(&mut reader), [""; 0]);
}

#[test]
fn memory_stays_bounded_and_dropped_events_are_freed() {
    let ring = Ring::new(10_000);
    let _slow = ring.subscribe();
    let mut reader = ring.subscribe();
    ring.publish([note(1)]);
    let Poll::Ready(Some(Received::Event(first))) = reader.try_next() else {
        panic!("nothing was published");
    };
    for sequence in 2..50_000 {
        ring.publish([Note { sequence, bytes: (sequence as usize * 37) % 900 }]);
        state(&ring, |s| {
            assert!(s.bytes <= 10_000);
            assert_eq!(s.bytes, s.chunks.iter().map(|chunk| chunk.bytes).sum::<usize>());
            assert!(slots(s).iter().map(|slots| slots.capacity()).sum::<usize>() < 1_000);
        });
    }
    assert_eq!(Arc::strong_count(&first), 1, "only the reader still has it");
}

#[test]
fn an_event_over_the_limit_is_delivered_alone() {
    let ring = Ring::new(1_000);
    let mut reader = ring.subscribe();
    ring.publish([note(1), Note { sequence: 2, bytes: 5_000 }]);
    assert_eq!(drain(&mut reader), ["-1", "2"]);
    ring.publish([note(3)]);
    assert_eq!(state(&ring, |s| s.end - s.first), 1);
    assert_eq!(drain(&mut reader), ["3"]);
}

#[test]
fn closing_lets_readers_drain_and_then_end_for_good() {
    let ring = ring(10);
    let mut reader = ring.subscribe();
    let mut waiting = ring.subscribe();
    let (count, waker) = counting();
    assert!(poll(&mut waiting, &waker).is_pending());
    ring.publish([note(1)]);
    ring.close();
    ring.close();
    ring.publish([note(2)]);
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    assert_eq!(drain(&mut reader), ["1", "end"]);
    assert_eq!(drain(&mut reader), ["end"]);
    assert_eq!(drain(&mut ring.subscribe()), ["end"]);
    assert_eq!(drain(&mut ring.subscribe_after(0)), ["1", "end"]);
    assert!(block_on(waiting.next()).is_some());
    assert!(block_on(waiting.next()).is_none());
}

#[test]
fn closing_wakes_who_waits_and_so_does_dropping_the_last_ring() {
    for close in [true, false] {
        let ring = ring(10);
        let clone = ring.clone();
        let mut reader = ring.subscribe();
        let (count, waker) = counting();
        assert!(poll(&mut reader, &waker).is_pending());
        drop(clone);
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        if close {
            ring.close();
        } else {
            drop(ring);
        }
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(matches!(poll(&mut reader, &waker), Poll::Ready(None)));
    }
}

#[test]
fn a_dropped_reader_leaves_no_waker_and_its_place_is_used_again() {
    let ring = ring(10);
    let mut kept = ring.subscribe();
    let (count, waker) = counting();
    assert!(poll(&mut kept, &waker).is_pending());
    for _ in 0..1_000 {
        let mut reader = ring.subscribe();
        assert!(poll(&mut reader, &waker).is_pending());
        assert_eq!(wakers(&ring), 2);
    }
    assert_eq!(wakers(&ring), 1);
    assert_eq!(state(&ring, |s| s.waiting.wakers.len()), 2);
    ring.publish([note(1)]);
    assert_eq!(wakers(&ring), 0);
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    drop(kept);
    assert_eq!(Arc::strong_count(&count), 2, "the ring holds no clone");
}

#[test]
fn a_ticket_from_before_a_wake_up_touches_no_other_readers_waker() {
    let ring = ring(10);
    let (_, waker) = counting();
    let mut readers = [(); 4].map(|()| ring.subscribe());
    let [void, freed, late, later] = &mut readers;
    assert!(poll(void, &waker).is_pending());
    assert!(poll(freed, &waker).is_pending());
    // A place freed before the wake-up is no place after it.
    *freed = ring.subscribe();
    ring.publish([note(1)]);
    for reader in [late, later] {
        drain(reader);
        assert!(poll(reader, &waker).is_pending());
    }
    assert_eq!(wakers(&ring), 2);
    // Dropped while their tickets name the places that `late` and `later` have by now.
    *void = ring.subscribe();
    *freed = ring.subscribe();
    assert_eq!(wakers(&ring), 2);
    drop(readers);
    assert_eq!(wakers(&ring), 0);
}

#[test]
fn the_latest_task_that_polled_is_the_one_woken() {
    let ring = ring(10);
    let mut reader = ring.subscribe();
    let (first, first_waker) = counting();
    let (second, second_waker) = counting();
    assert!(poll(&mut reader, &first_waker).is_pending());
    assert!(poll(&mut reader, &first_waker).is_pending());
    assert!(poll(&mut reader, &second_waker).is_pending());
    assert_eq!(wakers(&ring), 1);
    ring.publish([note(1)]);
    assert_eq!(first.0.load(Ordering::SeqCst), 0);
    assert_eq!(second.0.load(Ordering::SeqCst), 1);
    ring.publish([note(2)]);
    assert_eq!(second.0.load(Ordering::SeqCst), 1, "woken once, until it polls again");
}

#[test]
fn a_waker_that_owns_a_reader_may_be_dropped_by_the_ring() {
    struct Task(#[expect(dead_code, reason = "held to be dropped")] Mutex<Option<Reader<Note>>>);
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    let ring = ring(10);
    let mut reader = ring.subscribe();
    let mut inner = ring.subscribe();
    let (_, waker) = counting();
    assert!(poll(&mut inner, &waker).is_pending());
    let task = Waker::from(Arc::new(Task(Mutex::new(Some(inner)))));
    assert!(poll(&mut reader, &task).is_pending());
    drop(task);
    // Replaces the last clone of `task`, which drops `inner`, which takes the lock.
    assert!(poll(&mut reader, &waker).is_pending());
    assert_eq!(wakers(&ring), 1);
}

#[test]
fn readers_are_counted() {
    let ring = ring(10);
    assert!(!ring.has_readers());
    let a = ring.subscribe();
    let b = ring.subscribe_after(0);
    drop(a);
    assert!(ring.has_readers());
    drop(b);
    assert!(!ring.has_readers());
    ring.publish([note(1)]);
    assert_eq!(drain(&mut ring.subscribe_after(0)), ["1"], "buffered regardless");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_next_loses_nothing() {
    const LAST: u64 = 20_000;
    let ring = ring(1 << 20);
    let mut reader = ring.subscribe();
    let (go, gone) = std::sync::mpsc::channel();
    let writer = thread::spawn(move || {
        gone.recv().unwrap();
        for sequence in 1..=LAST {
            ring.publish([note(sequence)]);
            if sequence % 64 == 0 {
                thread::yield_now();
            }
        }
    });
    let mut expected = 1;
    assert!(reader.next().now_or_never().is_none(), "one is dropped while it waits");
    go.send(()).unwrap();
    loop {
        tokio::select! {
            // Which branch is polled first is random, so `next` is dropped before and after it waited.
            received = reader.next() => match received {
                Some(Received::Event(event)) => {
                    assert_eq!(event.sequence, expected);
                    expected += 1;
                }
                Some(lagged) => panic!("{lagged:?}"),
                None => break,
            },
            () = tokio::task::yield_now() => {}
        }
    }
    writer.join().unwrap();
    assert_eq!(expected, LAST + 1);
}

/// Reads to the end; every event was either received in order or counted as missed.
async fn account(mut reader: Reader<Note>, last: u64) -> (u64, u64) {
    let (mut received, mut missed, mut at) = (0, 0, 0);
    while let Some(next) = StreamExt::next(&mut reader).await {
        match next {
            Received::Event(event) => {
                assert_eq!(event.sequence, at + 1);
                (received, at) = (received + 1, at + 1);
            }
            Received::Lagged { missed: some } => (missed, at) = (missed + some, at + some),
        }
    }
    assert_eq!(received + missed, last);
    (received, missed)
}

/// Four readers on threads of their own; `pace` lets the writer wait for them at times, so that they go to sleep.
fn stress(notes_max: usize, last: u64, group: u64, pace: bool) -> Vec<(u64, u64)> {
    let ring = ring(notes_max);
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let reader = ring.subscribe();
            thread::spawn(move || block_on(account(reader, last)))
        })
        .collect();
    let mut sequence = 0;
    while sequence < last {
        let to = (sequence + group).min(last);
        ring.publish((sequence + 1..=to).map(note));
        sequence = to;
        while pace && sequence % 7 == 0 && wakers(&ring) < 4 {
            thread::yield_now();
        }
    }
    ring.close();
    readers.into_iter().map(|r| r.join().unwrap()).collect()
}

#[test]
fn no_wake_up_is_missed_under_concurrency() {
    // A missed wake-up hangs here, so it is watched.
    let (done, finished) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for (received, missed) in stress(1 << 20, 50_000, 1, true) {
            assert_eq!((received, missed), (50_000, 0));
        }
        for (received, missed) in stress(16, 200_000, 1, false) {
            println!("received {received}, missed {missed}");
        }
        stress(500, 1_000_000, 1_024, false);
        done.send(()).unwrap();
    });
    finished.recv_timeout(Duration::from_secs(60)).unwrap();
}

#[test]
fn two_writers_and_a_reader_agree_on_one_order() {
    let ring = ring(1 << 20);
    let readers = [(); 2].map(|()| ring.subscribe());
    let writers = [0, 1].map(|side| {
        let ring = ring.clone();
        thread::spawn(move || (0..5_000).for_each(|i| ring.publish([note(2 * i + side)])))
    });
    drop(ring);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    let [a, b] = readers.map(|mut reader| drain(&mut reader));
    assert_eq!(a.len(), 10_001);
    assert_eq!(a, b);
}

#[test]
fn readers_and_rings_cross_threads() {
    fn check<T: Send + Sync + Unpin + 'static>() {}
    check::<Ring<Note>>();
    check::<Reader<Note>>();
    check::<Received<Note>>();
}

fn publish_group(ring: &Ring<Note>, sequences: std::ops::Range<u64>) {
    let mut events: Vec<Note> = sequences.map(note).collect();
    ring.publish_group(&mut events, 0).wake();
    assert!(events.is_empty());
}

#[test]
fn groups_are_read_in_order_with_what_is_published_between_them() {
    let ring = ring(100);
    let mut early = ring.subscribe();
    publish_group(&ring, 1..4);
    ring.publish([note(4), note(4)]);
    publish_group(&ring, 5..7);
    let late = [0, 1, 3, 4, 5, 6].map(|sequence| drain(&mut ring.subscribe_after(sequence)).len());
    assert_eq!(late, [7, 6, 4, 2, 1, 0]);
    let mut late = ring.subscribe_after(5);
    let mut from_now = ring.subscribe();
    ring.settle();
    publish_group(&ring, 7..8);
    assert_eq!(drain(&mut early), ["1", "2", "3", "4", "4", "5", "6", "7"]);
    assert_eq!(drain(&mut late), ["6", "7"]);
    assert_eq!(drain(&mut from_now), ["7"]);
    publish_group(&ring, 8..9);
    ring.close();
    assert_eq!(drain(&mut early), ["8", "end"]);
}

#[test]
fn an_uncommitted_event_after_a_group_that_is_newer_does_not_break_the_replay() {
    let ring = ring(100);
    publish_group(&ring, 5..8);
    ring.publish([note(6)]);
    publish_group(&ring, 8..9);
    assert_eq!(drain(&mut ring.subscribe_after(6)), ["7", "6", "8"]);
    assert_eq!(drain(&mut ring.subscribe_after(7)), ["8"]);
}

#[test]
fn the_oldest_group_goes_as_a_whole_and_the_newest_stays() {
    let ring = ring(20);
    let mut reader = ring.subscribe();
    for first in [1, 11, 21] {
        publish_group(&ring, first..first + 10);
    }
    ring.settle();
    assert_eq!(drain(&mut reader)[..2], ["-10", "11"]);
    let mut huge = vec![note(31), note(32)];
    ring.publish_group(&mut huge, 1 << 20).wake();
    ring.settle();
    assert_eq!(drain(&mut ring.subscribe_after(0)), ["-30", "31", "32"]);
    assert_eq!(drain(&mut ring.subscribe_after(25)), ["-5", "31", "32"]);
    // Whatever comes after it pushes it out.
    ring.publish([note(33)]);
    assert_eq!(drain(&mut ring.subscribe_after(0)), ["-32", "33"]);
}

#[test]
fn groups_count_their_memory_and_do_not_pile_up_where_nobody_looks() {
    let ring = Ring::new(100_000);
    let mut reader = ring.subscribe();
    let mut events = Vec::new();
    for first in (1..=20_000).step_by(10) {
        events.extend((first..first + 10).map(note));
        ring.publish_group(&mut events, 700).wake();
        state(&ring, |s| {
            assert!(s.bytes <= 100_000 + 2_000, "{}", s.bytes);
            assert_eq!(s.bytes, s.chunks.iter().map(|chunk| chunk.bytes).sum::<usize>());
            assert!(s.chunks.len() < 140, "{}", s.chunks.len());
        });
        if first % 3 == 0 {
            ring.settle();
        }
    }
    let seen = drain(&mut reader);
    let missed = 20_000 - (seen.len() - 1);
    assert_eq!((&seen[0], &seen[1]), (&format!("-{missed}"), &(missed + 1).to_string()));
}

#[test]
fn a_group_that_is_longer_than_the_buffer_leaves_its_end() {
    let ring = ring(5_000);
    let mut reader = ring.subscribe();
    publish_group(&ring, 1..100_001);
    ring.settle();
    assert!(state(&ring, |s| s.bytes) <= 5_000 * Slot::new(note(0)).bytes);
    let seen = drain(&mut reader);
    assert_eq!(seen.last().map(String::as_str), Some("100000"));
    assert!(seen.len() > 2_000, "{}", seen.len());
}

#[test]
fn memory_of_a_long_group_is_not_kept_for_a_short_one() {
    let ring = ring(1 << 20);
    let mut events = Vec::with_capacity(10_000);
    events.push(note(1));
    ring.publish_group(&mut events, 0).wake();
    assert!(state(&ring, |s| s.bytes) < 1_000);
    assert_eq!(drain(&mut ring.subscribe_after(0)), ["1"]);
}

#[test]
fn a_group_wakes_who_waits_and_an_empty_one_nobody() {
    let ring = ring(10);
    let mut reader = ring.subscribe();
    let (count, waker) = counting();
    assert!(reader.poll(Some(&mut Context::from_waker(&waker))).is_pending());
    publish_group(&ring, 1..1);
    assert_eq!(count.0.load(Ordering::SeqCst), 0);
    publish_group(&ring, 1..3);
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    ring.close();
    publish_group(&ring, 3..5);
    assert_eq!(drain(&mut reader), ["1", "2", "end"]);
}
