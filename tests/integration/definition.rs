//! Jobs and their registration.

use durably::{Error, Job, RunStatus, Step};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::support::{TempFile, echo, memory, run_of, within};

#[tokio::test]
async fn p_def_01_a_definition_is_inert_until_it_is_registered() {
    let durably = memory().await;
    let job = echo("echo");
    assert_eq!(job.name(), "echo");
    assert!(durably.get_job("echo").is_none());
    let refused = durably.trigger_json("echo", json!(1)).await;
    assert!(matches!(&refused, Err(Error::JobNotFound { name }) if name == "echo"), "{refused:?}");
    let handle = durably.register(job).expect("registers");
    assert_eq!(within(handle.trigger_and_wait(7)).await.expect("completes").output, 7);
}

#[tokio::test]
async fn p_def_02_handles_come_in_the_order_of_their_jobs_under_their_names() {
    let durably = memory().await;
    let text = Job::new("text", |_: Step, input: String| async move { Ok(input.len()) });
    let (first, (second, third)) = durably.register((echo("number"), (text, echo("other")))).expect("registers");
    assert_eq!([first.name(), second.name(), third.name()], ["number", "text", "other"]);
    assert_eq!(within(second.trigger_and_wait("four".to_owned())).await.expect("completes").output, 4);
}

#[tokio::test]
async fn p_def_03_the_same_definition_again_gives_an_equal_handle() {
    let durably = memory().await;
    let job = echo("echo");
    let first = durably.register(job.clone()).expect("registers");
    let (again, and_again) = durably.clone().register((job.clone(), job.clone())).expect("registers");
    assert_eq!(first, again);
    assert_eq!(first, and_again);
    let elsewhere = memory().await.register(job).expect("registers");
    assert_ne!(first, elsewhere, "another runtime's handle is another handle");
}

#[tokio::test]
async fn p_def_04_another_definition_under_a_taken_name_is_a_typed_error() {
    let durably = memory().await;
    let job = echo("echo");
    let first = durably.register(job.clone()).expect("registers");
    for other in [echo("echo"), job.concurrency(2)] {
        let refused = durably.register(other);
        assert!(matches!(&refused, Err(Error::JobAlreadyRegistered { name }) if name == "echo"), "{refused:?}");
    }
    assert_eq!(within(first.trigger_and_wait(1)).await.expect("the first is still there").output, 1);
}

#[tokio::test]
async fn p_def_05_of_jobs_registered_together_all_are_or_none() {
    let durably = memory().await;
    durably.register(echo("taken")).expect("registers");
    let refused = durably.register((echo("new"), echo("taken"), echo("newer")));
    assert!(matches!(refused, Err(Error::JobAlreadyRegistered { .. })), "{refused:?}");
    let twice = durably.register((echo("new"), echo("new")));
    assert!(matches!(twice, Err(Error::JobAlreadyRegistered { .. })), "{twice:?}");
    let invalid = durably.register((echo("new"), echo("no spaces")));
    assert!(matches!(invalid, Err(Error::InvalidOption { .. })), "{invalid:?}");
    assert!(durably.get_job("new").is_none());
    durably.register(echo("new")).expect("the name is free");
}

#[tokio::test]
async fn p_def_06_07_a_job_is_found_by_name_from_every_clone_and_can_be_triggered() {
    let durably = memory().await;
    let other = durably.clone();
    other.register(echo("echo")).expect("registers");
    assert!(durably.get_job("unknown").is_none());
    let found = durably.get_job("echo").expect("is registered");
    assert_eq!(found.name(), "echo");
    let run = found.trigger(json!(5)).await.expect("triggers");
    assert_eq!(within(run.output()).await.expect("completes"), json!(5));
}

#[tokio::test]
async fn p_def_09_names_are_1_to_128_bytes_of_a_plain_alphabet() {
    let durably = memory().await;
    for name in ["a", "Import.CSV/2-b_c", &"n".repeat(128)] {
        durably.register(echo(name)).expect("is a name");
    }
    for name in ["", "two words", "naïve", "a\0b", "a:b"] {
        let refused = durably.register(echo(name));
        assert!(matches!(refused, Err(Error::InvalidOption { option: "job name", .. })), "{name:?}: {refused:?}");
    }
}

#[tokio::test]
async fn p_def_10_an_output_of_any_json_is_stored_as_it_is() {
    let durably = memory().await;
    let job = durably.register(Job::new("any", |_: Step, input: Value| async move { Ok(input) })).expect("registers");
    for value in [json!(null), json!({"a": [1, "two", {"b": null}]}), json!("text")] {
        assert_eq!(within(job.trigger_and_wait(value.clone())).await.expect("completes").output, value);
    }
}

#[tokio::test]
async fn p_def_11_runs_meet_the_code_that_is_registered_when_they_start() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let old = durably.register(echo("job")).expect("registers");
    let run = old.trigger(20).await.expect("triggers").id();
    durably.shutdown().await.expect("closes");
    let durably = file.open().await;
    let newer = Job::new("job", |_: Step, input: u32| async move { Ok(input + 1) });
    durably.register(newer).expect("registers");
    let done = within(durably.wait_for_run(run)).await.expect("completes");
    assert_eq!(done.output_as::<u32>().expect("a number"), 21);
}

#[tokio::test]
async fn runs_of_a_job_that_is_not_registered_stay_pending_and_start_when_it_is() {
    let file = TempFile::new();
    let durably = file.open_paused().await;
    let job = durably.register(echo("later")).expect("registers");
    let run = job.trigger(3).await.expect("triggers").id();
    durably.shutdown().await.expect("closes");

    let durably = file.open().await;
    let other = durably.register(echo("other")).expect("registers");
    // Another job's run goes from end to end meanwhile.
    within(other.trigger_and_wait(0)).await.expect("completes");
    let waiting = run_of(&durably, run).await;
    assert_eq!((waiting.status, waiting.blocked), (RunStatus::Pending, None));
    assert_eq!(waiting.job_name, "later");
    durably.register(echo("later")).expect("registers");
    let done = within(durably.wait_for_run(run)).await.expect("completes");
    assert_eq!(done.output, Some(json!(3)));
}

/// What can't be used is refused there, not at the first run.
#[tokio::test]
async fn a_limit_of_no_runs_and_a_schema_that_does_not_compile_are_refused() {
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct LookAhead {
        #[schemars(regex(pattern = "(?=a)b"))]
        text: String,
    }
    let durably = memory().await;
    let refused = durably.register(echo("none").concurrency(0));
    assert!(matches!(refused, Err(Error::InvalidOption { option: "job concurrency", .. })), "{refused:?}");
    let job = Job::new("look-ahead", |_: Step, input: LookAhead| async move { Ok(input.text) });
    let refused = durably.register(job);
    let Err(Error::InvalidSchema { job, side, message }) = &refused else { panic!("{refused:?}") };
    assert_eq!((job.as_str(), *side), ("look-ahead", "input"));
    assert!(message.contains("(?=a)b"), "it says what does not compile: {message}");
    assert!(durably.get_job("look-ahead").is_none());
}

#[tokio::test]
async fn a_handle_and_a_found_job_show_the_schemas() {
    let durably = memory().await;
    let job = durably.register(echo("echo")).expect("registers");
    assert_eq!(job.input_schema()["type"], "integer");
    assert_eq!(job.output_schema()["type"], "integer");
    let found = durably.get_job("echo").expect("is registered");
    assert_eq!(found.input_schema(), job.input_schema());
    assert_eq!(found.output_schema(), job.output_schema());
}
