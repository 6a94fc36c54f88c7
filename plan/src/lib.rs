//! THE DECISIONS: what is trained, how it is cut, and who hosts what. Pure: no clock, no socket,
//! no thread, no tensor. Files are read only by `globs` (directories) and through a closure of the
//! caller's (`manifest`, for a model's `config.json`).
//!
//! Reading order: `grid` (cells), `model` (the network's sizes), `numerics` (how numbers are kept), `job` (a checked manifest),
//! `manifest` (how it is checked), `arithmetic` (what a network costs), `plan` and `placement`
//! (who hosts which cell, and why), `buddies` (who holds copies of its state), `schedule` (slots), `gpus`, `fleet`, `cost` and
//! `planner` (what a run would take on cards one may not even have), `batch` and `samples` (which text when),
//! `learning_rate` (how fast it learns when), `settings` (what verbs take from elsewhere than their flags), `report` and `routing` (what is told of a step), `trace` (what it was made of), `standing` (how a run stands, beside its tensors).

pub mod arithmetic;
mod balance;
pub mod batch;
pub mod buddies;
pub mod checkpoint;
pub mod cost;
pub mod device;
pub mod fleet;
pub mod globs;
pub mod gpus;
pub mod grid;
pub mod job;
pub mod learning_rate;
pub mod manifest;
pub mod memory;
pub mod model;
pub mod numerics;
pub mod pace;
pub mod placement;
pub mod plan;
pub mod planner;
pub mod report;
pub mod routing;
pub mod samples;
pub mod schedule;
pub mod settings;
pub mod standing;
pub mod store;
pub mod trace;
pub mod work;
