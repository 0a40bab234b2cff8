//! Labels of runs, and filtering by them.

use std::collections::BTreeMap;

use durably::{Error, RunFilter};

use super::support::{TempFile, echo, next_event, paused, within};

#[tokio::test]
async fn p_label_01_labels_are_on_the_run_and_on_its_events() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let mut events = durably.events();
    let plain = job.trigger(1).await.expect("triggers");
    assert_eq!(plain.get().await.expect("reads").labels, BTreeMap::new());
    let call = job.trigger(2).label("a", "old").labels([("b.c/d-e_F", "2"), ("a", "1")]);
    let run = call.await.expect("triggers");
    let wanted = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b.c/d-e_F".to_owned(), "2".to_owned())]);
    assert_eq!(run.get().await.expect("reads").labels, wanted);
    durably.start().await.expect("starts");
    for kind in ["run:trigger", "run:leased", "run:complete"] {
        let event = within(next_event(&mut events, |event| event.run_id == run.id())).await;
        assert_eq!((event.kind.name(), &*event.labels), (kind, &wanted));
    }
}

#[tokio::test]
async fn p_label_02_keys_have_a_plain_alphabet_and_values_have_not() {
    let durably = paused().await;
    let job = durably.register(echo("job")).expect("registers");
    for key in ["", "two words", "ключ", "a:b", "a=b"] {
        let refused = job.trigger(1).label(key, "v").await;
        assert!(matches!(refused, Err(Error::InvalidOption { option: "label key", .. })), "{key:?}: {refused:?}");
    }
    let run = job.trigger(1).label("free", "any text: ☃\0").label("empty", "").await.expect("triggers");
    let found = durably.get_runs(RunFilter::new().label("free", "any text: ☃\0").label("empty", "")).await;
    assert_eq!(found.expect("reads").iter().map(|run| run.id).collect::<Vec<_>>(), [run.id()]);
}

#[tokio::test]
async fn p_label_03_a_filter_wants_all_its_labels_exactly() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let both = job.trigger(1).label("tenant", "acme").label("tier", "gold").await.expect("triggers").id();
    let one = job.trigger(2).label("tenant", "acme").await.expect("triggers").id();
    job.trigger(3).label("tenant", "acme2").label("ten", "antacme").await.expect("triggers");
    durably.shutdown().await.expect("closes");
    // Before and after a restart, from the journal's tail and from the tables.
    let durably = file.open_paused().await;
    let job = durably.register(echo("job")).expect("registers");
    let late = job.trigger(4).label("tenant", "acme").await.expect("triggers").id();
    let find = async |labels: &[(&str, &str)]| {
        let filter = labels.iter().fold(RunFilter::new(), |filter, (key, value)| filter.label(*key, *value));
        durably.get_runs(filter).await.expect("reads").iter().map(|run| run.id).collect::<Vec<_>>()
    };
    assert_eq!(find(&[("tenant", "acme")]).await, [late, one, both]);
    assert_eq!(find(&[("tenant", "acme"), ("tier", "gold")]).await, [both]);
    assert_eq!(find(&[("tenant", "acme"), ("tier", "silver")]).await, []);
    assert_eq!(find(&[("tenant", "")]).await, []);
    assert_eq!(find(&[("unknown", "acme")]).await, []);
    let refused = durably.get_runs(RunFilter::new().label("two words", "x")).await;
    assert!(matches!(refused, Err(Error::InvalidOption { option: "label key", .. })), "{refused:?}");
}
