//! Spans for what executes, and no payload in anything that is logged.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, OnceLock};

use ::tracing::field::{Field, Visit};
use ::tracing::span::Attributes;
use ::tracing::{Event, Id, Level, Subscriber};
use durably::{Durably, Job, Step};
use serde_json::json;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use crate::support::{Count, TempFile, ended, job_with, within};

type Fields = BTreeMap<&'static str, String>;

/// Every span and event of the whole test binary, at INFO and above.
#[derive(Clone, Default)]
struct Capture(Arc<Mutex<Vec<(&'static str, Fields)>>>);

impl Visit for Fieldset<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

struct Fieldset<'f>(&'f mut Fields);

impl Capture {
    /// The one there is: a process has one default subscriber, which also hears the runtime's own threads.
    fn install() -> &'static Capture {
        static CAPTURE: OnceLock<Capture> = OnceLock::new();
        CAPTURE.get_or_init(|| {
            let capture = Capture::default();
            let subscriber = tracing_subscriber::registry().with(capture.clone());
            ::tracing::subscriber::set_global_default(subscriber).expect("the only one");
            capture
        })
    }

    fn take_up(&self, level: Level, name: &'static str, record: impl FnOnce(&mut Fieldset<'_>)) {
        if level <= Level::INFO {
            let mut fields = Fields::new();
            record(&mut Fieldset(&mut fields));
            self.0.lock().unwrap().push((name, fields));
        }
    }

    fn spans(&self, name: &str, run: durably::RunId) -> Vec<Fields> {
        let run = run.to_string();
        let all = self.0.lock().unwrap();
        let of_run = all.iter().filter(|(span, fields)| *span == name && fields.get("run_id") == Some(&run));
        of_run.map(|(_, fields)| fields.clone()).collect()
    }
}

impl<S: Subscriber> Layer<S> for Capture {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        let metadata = attributes.metadata();
        self.take_up(*metadata.level(), metadata.name(), |fields| attributes.record(fields));
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.take_up(*event.metadata().level(), "event", |fields| event.record(fields));
    }
}

#[tokio::test]
async fn each_attempt_has_a_run_span_and_each_step_a_step_span() {
    within(async {
        let capture = Capture::install();
        let durably = Durably::in_memory().await.unwrap();
        let tries = Count::default();
        let job = job_with("spans", tries, |step: Step, _, tries| async move {
            step.run("first", || async { Ok(()) }).await?;
            if tries.up() == 1 {
                return Err("again".into());
            }
            step.run(("second", 2), || async { Ok(()) }).await
        });
        let jobs = durably.register(job).unwrap();
        let run = jobs.trigger(0).await.unwrap();
        ended(&durably, run.id()).await;
        durably.resume(run.id()).await.unwrap();
        run.output().await.unwrap();
        let runs = capture.spans("durably.run", run.id());
        let generations: Vec<_> = runs.iter().map(|fields| (&*fields["job"], &*fields["generation"])).collect();
        assert_eq!(generations, [("spans", "1"), ("spans", "2")]);
        let steps = capture.spans("durably.step", run.id());
        let steps: Vec<_> =
            steps.iter().map(|fields| (&*fields["step"], &*fields["index"], &*fields["replayed"])).collect();
        assert_eq!(steps, [("first", "0", "false"), ("first", "0", "true"), ("second[2]", "1", "false")]);
    })
    .await;
}

#[tokio::test]
async fn no_payload_is_in_anything_that_is_logged() {
    within(async {
        let capture = Capture::install();
        let canary = "canary-7d1f9c";
        let file = TempFile::new();
        let job = || {
            Job::new("secrets", |step: Step, input: String| async move {
                step.log().info("logged", json!({"secret": input}));
                let out = step.run("keep", || async { Ok(input.clone()) }).await?;
                step.run("fail", || async { Err::<u32, _>("no".into()) }).await.ok();
                step.progress(1, None);
                assert!(!out.ends_with("panic"), "it panics");
                Ok(out)
            })
        };
        let durably = file.open().await;
        let jobs = durably.register(job()).unwrap();
        let run = jobs.trigger(canary.to_owned()).idempotency_key("key").await.unwrap();
        assert_eq!(run.output().await.unwrap(), canary);
        // A repeat with another input is warned of.
        assert!(jobs.trigger(format!("{canary}-other")).idempotency_key("key").await.unwrap().input_differs());
        let panics = jobs.trigger(format!("{canary}-panic")).await.unwrap();
        ended(&durably, panics.id()).await;
        durably.trigger_json("secrets", json!({"not": canary})).await.unwrap_err();
        drop((jobs, durably));
        // Code that can't decode the input any more, and a checkpoint that no longer fits.
        let durably = file.open().await;
        durably.register(Job::new("secrets", |_: Step, input: u32| async move { Ok(input) })).unwrap();
        durably.resume(panics.id()).await.unwrap();
        durably.run_until_idle(None).await.unwrap();
        durably.shutdown().await.unwrap();
        let all = capture.0.lock().unwrap();
        assert!(all.iter().any(|(_, fields)| fields.get("run").is_some_and(|id| *id == run.id().to_string())));
        for (name, fields) in all.iter() {
            for (field, value) in fields {
                assert!(!value.contains(canary), "{name} {field}: {value}");
            }
        }
    })
    .await;
}
