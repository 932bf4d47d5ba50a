mod allocation;
mod conflict;
mod large;
mod merge;
mod model;
mod negotiation;
mod planted;
mod world;
