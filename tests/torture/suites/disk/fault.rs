//! What goes wrong with a disk, at which operation, and for how long.

use std::time::Duration;

/// What an operation takes of a disk that is slow.
pub const SLOW: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An operation is not done and says so.
    Fails,
    /// A write is done in part, and says that it is not done.
    Short,
    /// A change or a flush is done, and says that it is not.
    DoneAndFails,
    /// There is no room: writes and changes of length fail, the rest works.
    Full,
    /// A flush fails once. Of what it was to flush a part is on disk; all of it looks written until the cache or the power goes.
    LostFlush,
    /// All is done, in its own time: each operation takes [`SLOW`].
    Slow,
    /// This is where the history of the disk ends. Nobody who goes on with it is told.
    PowerLoss,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    Once,
    /// Until the disk has been opened so often again, each time for so long.
    Opens(u32, Duration),
    For(Duration),
}

/// From which operation on, counted from now, something goes wrong.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub at: u64,
    pub fault: Fault,
    pub lasts: Lasts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Flush,
}

/// A fault that has begun and goes on.
#[derive(Debug, Clone, Copy)]
enum Until {
    Opened(u32, Duration),
    Time(Duration),
    Healed,
}

#[derive(Debug, Default)]
pub struct Faults {
    operations: u64,
    /// In ascending order of the operation that they strike.
    planned: Vec<Plan>,
    down: Option<(Fault, Until)>,
    pub struck: u64,
}

impl Fault {
    fn concerns(self, operation: Operation) -> bool {
        match self {
            Fault::Fails | Fault::Slow => true,
            Fault::DoneAndFails | Fault::PowerLoss => operation != Operation::Read,
            Fault::Short | Fault::Full => operation == Operation::Write,
            Fault::LostFlush => operation == Operation::Flush,
        }
    }

    /// Once it has begun: of a disk that does not work nothing does.
    fn goes_on_for(self, operation: Operation) -> bool {
        self != Fault::Full || self.concerns(operation)
    }
}

impl Faults {
    pub fn plan(&mut self, plan: Plan) {
        self.planned.push(Plan { at: self.operations + plan.at, ..plan });
        self.planned.sort_by_key(|plan| plan.at);
    }

    pub fn heal(&mut self) {
        self.planned.clear();
        self.down = None;
    }

    /// What is to go wrong with this operation.
    pub fn strike(&mut self, operation: Operation, now: Duration) -> Option<Fault> {
        let number = self.operations;
        self.operations += 1;
        if let Some((fault, until)) = self.down {
            let goes_on = match until {
                Until::Opened(more, _) => more > 0,
                Until::Time(end) => now < end,
                Until::Healed => return Some(fault),
            };
            if goes_on {
                let strikes = fault.goes_on_for(operation);
                self.struck += u64::from(strikes);
                return strikes.then_some(fault);
            }
            self.down = None;
        }
        let due = self.planned.iter().position(|plan| plan.at <= number && plan.fault.concerns(operation))?;
        let Plan { fault, lasts, .. } = self.planned.remove(due);
        self.struck += 1;
        self.down = match lasts {
            _ if fault == Fault::Slow => Some((fault, Until::Healed)),
            Lasts::Once => None,
            Lasts::Opens(more, each) => Some((fault, Until::Opened(more, each))),
            Lasts::For(time) => Some((fault, Until::Time(now + time))),
        };
        Some(fault)
    }

    /// Whether opening fails, and what that took.
    pub fn open(&mut self, now: Duration) -> (Option<Fault>, Duration) {
        let fails = |fault| Some(fault).filter(|fault| *fault != Fault::Full);
        match self.down {
            Some((_, Until::Opened(0, _))) => {
                self.down = None;
                (None, Duration::ZERO)
            }
            // Room comes back by itself, as soon as it has been asked for often enough.
            Some((fault, Until::Opened(more, each))) => {
                self.down = Some((fault, Until::Opened(more - 1, each)));
                (fails(fault), each)
            }
            Some((fault, Until::Time(end))) if now < end => (fails(fault), Duration::ZERO),
            _ => (None, Duration::ZERO),
        }
    }
}
