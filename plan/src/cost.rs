//! What a step costs on given cards and links, before anything runs: compute by roofline, links by
//! latency and rate. Every efficiency is in `efficiency`, with its source, and none is fitted to a
//! published training run: those are predicted (`docs/planner.md`).

pub mod efficiency;
