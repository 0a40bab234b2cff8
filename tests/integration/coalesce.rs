//! A trigger answered with the run that waits already.
