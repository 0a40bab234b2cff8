//! Same key, same run.
