//! What every suite has in common: how much it is to do, and what it says it did.

use std::time::Instant;

use durably::testing::Bug;

/// What a suite is to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Everything random derives from it; the same seed does the same.
    pub seed: u64,
    pub until: Until,
    /// The defect that the runtimes under test have.
    pub bug: Option<Bug>,
    /// Do all that can be enumerated, and sample only what can't.
    pub thorough: bool,
    /// Print what happens, where the suite keeps a trace.
    pub trace: bool,
}

/// When a suite has done enough.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    Cases(u64),
    #[cfg_attr(test, expect(dead_code, reason = "for the example, which runs for minutes"))]
    Time(Instant),
}

impl Plan {
    /// Whether another case is to be done after so many.
    #[expect(clippy::disallowed_methods, reason = "how long a suite takes is no part of what it tests")]
    pub fn goes_on(&self, cases: u64) -> bool {
        match self.until {
            Until::Cases(wanted) => cases < wanted,
            Until::Time(end) => cases == 0 || Instant::now() < end,
        }
    }

    /// The seed of one case: what is printed to repeat it alone.
    pub fn seed_of(&self, case: u64) -> u64 {
        // The first case has the plan's own seed, so that a case is repeated by a plan of one.
        self.seed.wrapping_add(case.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }
}

/// What a suite did.
#[derive(Debug, Default)]
pub struct Report {
    pub cases: u64,
    /// Kills, power losses, failed operations, damaged bytes: whatever the suite does to the runtime.
    pub faults: u64,
    pub violations: Vec<Violation>,
    /// What else was counted, for the eye: `("failpoints hit", 1234)`.
    pub counts: Vec<(String, u64)>,
}

/// A promise that was not kept.
#[derive(Debug, Clone)]
pub struct Violation {
    pub seed: u64,
    pub what: String,
}

/// A suite: its name and what runs it. It may stop at its first violation where a bug is planted.
#[derive(Debug, Clone, Copy)]
pub struct Suite {
    pub name: &'static str,
    pub run: fn(&Plan) -> Report,
    /// Cases of the tiers ci, nightly and release.
    pub cases: [u64; 3],
}

impl Suite {
    #[cfg_attr(not(test), expect(dead_code, reason = "for the tests, which have tiers"))]
    /// How many cases `DURABLY_TEST_TIER` asks for; `DURABLY_TEST_CASES` asks for so many.
    pub fn cases_of_tier(&self) -> u64 {
        if let Ok(cases) = std::env::var("DURABLY_TEST_CASES") {
            return cases.parse().expect("DURABLY_TEST_CASES is a number");
        }
        self.cases[tier()]
    }
}

/// What `DURABLY_TEST_TIER` asks for: 0, 1 or 2.
pub fn tier() -> usize {
    match std::env::var("DURABLY_TEST_TIER").as_deref() {
        Ok("release") => 2,
        Ok("nightly") => 1,
        Ok("ci") | Err(_) => 0,
        Ok(other) => panic!("DURABLY_TEST_TIER is {other:?}: there are ci, nightly and release"),
    }
}

/// Runs something in which panics are wanted, and says nothing of those of bodies.
pub fn quietly<T>(act: impl FnOnce() -> T) -> T {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let wanted = panic.payload().downcast_ref::<String>().is_some_and(|text| text.starts_with("a body panics"));
            if !wanted {
                before(panic);
            }
        }));
    });
    act()
}

/// A panic of the suite's own is a violation like another: what it expects was promised.
pub fn caught<T>(act: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
    })
}
