//! Every limit: just allowed, and just refused with nothing written.
