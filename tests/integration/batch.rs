//! Many triggers in one transaction.
