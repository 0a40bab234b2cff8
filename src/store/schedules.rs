//! Reading schedules.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::read::{Names, json, names};
use super::tables::Table;
use super::view::{Rows, View};
use super::{Fault, Store};
use crate::codec::records::{ScheduleRecord, StandingRecord};
use crate::codec::{self, Corrupted};
use crate::error::Error;
use crate::schedule::{Missed, ScheduleInfo};

impl Store {
    /// Every schedule, by name.
    pub(crate) async fn schedules(&self) -> Result<Vec<ScheduleInfo>, Error> {
        self.read(|view| {
            let (names, mut rows) = (names(view)?, Vec::new());
            view.scan_prefix(Table::Schedules, &[], &mut |key, row| {
                rows.push((key.to_vec(), row));
                Ok(ControlFlow::Continue(()))
            })?;
            rows.iter().map(|(key, row)| schedule(view, &names, key, row)).collect()
        })
        .await
    }

    pub(crate) async fn get_schedule(&self, name: &str) -> Result<Option<ScheduleInfo>, Error> {
        let name: Arc<str> = name.into();
        self.read(move |view| {
            let key = name.as_bytes();
            let Some(row) = view.get(Table::Schedules, key)? else { return Ok(None) };
            schedule(view, &names(view)?, key, &row).map(Some)
        })
        .await
    }
}

fn schedule(view: &View<'_>, names: &Names, key: &[u8], row: &Bytes) -> Result<ScheduleInfo, Fault> {
    let (record, input) = codec::open::<ScheduleRecord>(Table::Schedules, key, row)?;
    let row = view.get(Table::Standings, key)?;
    let row = row.ok_or_else(|| Corrupted::new(Table::Standings, key, "row is missing"))?;
    let (standing, _) = codec::open::<StandingRecord>(Table::Standings, key, &row)?;
    let missed = Missed::from_numbers((record.missed, record.missed_max));
    Ok(ScheduleInfo {
        name: String::from_utf8_lossy(key).into(),
        expression: record.expression,
        time_zone: record.time_zone,
        missed: missed.ok_or_else(|| Corrupted::new(Table::Schedules, key, "unknown policy"))?,
        job_name: names.get(&record.job).map(|name| name.to_string()).unwrap_or_default(),
        input: json(Table::Schedules, key, &input)?,
        concurrency_keys: record.keys.into_iter().map(|(key, _)| key).collect(),
        priority: record.priority,
        labels: record.labels.into_iter().collect(),
        paused: standing.paused,
        next_due: standing.next,
        last_due: standing.last_due,
        last_run: standing.last_run,
        created_at: record.created_at,
    })
}
