//! What holds on every backend, by theme. One program, so that Burn is compiled into it once.

mod adam;
mod axes;
mod calibrated;
mod checkpoint;
mod curves;
mod decoders;
mod divergences;
mod families;
mod features;
mod half;
mod kernels;
mod llama;
mod loss;
mod maps;
mod rotary;
mod shapes;
mod train;
mod traps;
mod vocabulary;
mod weights;
mod whitening;
mod width;
