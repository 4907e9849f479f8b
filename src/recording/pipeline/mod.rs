//! The pipeline as a value: from records to steps, and from steps to what others read of them. Pure.

pub mod document;
pub mod edges;
pub mod steps;
