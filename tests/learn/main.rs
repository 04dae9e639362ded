//! Tests of learning on the device: jobs, the child, promotion, trials, the watch, a scripted week.

mod beside;
mod device;
mod full;
mod instant;
mod jobs;
mod oddities;
mod week;
