//! A result that was computed from tensors without a graph, recorded as one operation with a backward of its own.
//!
//! candle's `CustomOp` computes its forward from raw storages of one device. What is made of tensor operations works on
//! every device, but has to be finished before the operation is recorded: the operation then hands the result over.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, MetalStorage, Result, Shape, Storage, Tensor,
    bail,
};
use std::sync::{Mutex, PoisonError};

/// Gradients of the inputs, in their order; `None` for an input that needs none.
pub(crate) type InputGradients = Vec<Option<Tensor>>;

/// `output` as the result of one operation on `inputs`, of which there are one to three. `backward` takes the gradient
/// of `output`, without a graph, and gives those of the inputs.
///
/// If no input has a graph, `output` is returned as it is.
///
/// # Errors
/// If there are more than three inputs.
pub(crate) fn recorded(
    name: &'static str,
    inputs: &[&Tensor],
    output: Tensor,
    backward: impl Fn(&Tensor) -> Result<InputGradients> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !inputs.iter().any(|x| x.track_op()) {
        return Ok(output);
    }
    // A storage is handed over whole, so it must hold exactly the elements of the output, in order.
    let output = if output.layout().start_offset() == 0 { output.contiguous()? } else { output.force_contiguous()? };
    let op = Recorded { name, output: Mutex::new(Some(output)), backward };
    match inputs {
        [x] => x.apply_op1(op),
        [x, y] => x.apply_op2(y, op),
        [x, y, z] => x.apply_op3(y, z, op),
        _ => bail!("{name} has {} inputs with gradients, 1 to 3 are possible", inputs.len()),
    }
}

struct Recorded<B> {
    name: &'static str,
    /// Handed over in the forward pass, which happens once.
    output: Mutex<Option<Tensor>>,
    backward: B,
}

impl<B> Recorded<B> {
    fn hand_over<S: BackendStorage>(&self, of_device: impl Fn(&Storage) -> Option<&S>) -> Result<(S, Shape)> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(output) = output else { bail!("{} was recorded twice", self.name) };
        let (storage, layout) = output.storage_and_layout();
        match of_device(&storage) {
            Some(storage) => Ok((storage.try_clone(layout)?, output.shape().clone())),
            None => bail!("{}: its inputs and its result are on different devices", self.name),
        }
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        self.hand_over(|storage| if let Storage::Cpu(storage) = storage { Some(storage) } else { None })
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        self.hand_over(|storage| if let Storage::Cuda(storage) = storage { Some(storage) } else { None })
    }

    fn metal(&self) -> Result<(MetalStorage, Shape)> {
        self.hand_over(|storage| if let Storage::Metal(storage) = storage { Some(storage) } else { None })
    }
}

type Gradient = Option<Tensor>;

impl<B: Fn(&Tensor) -> Result<InputGradients> + Send + Sync> CustomOp1 for Recorded<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Gradient> {
        Ok((self.backward)(&dy.detach())?.into_iter().next().flatten())
    }
}

impl<B: Fn(&Tensor) -> Result<InputGradients> + Send + Sync> CustomOp2 for Recorded<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Gradient, Gradient)> {
        let mut gradients = (self.backward)(&dy.detach())?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten()))
    }
}

impl<B: Fn(&Tensor) -> Result<InputGradients> + Send + Sync> CustomOp3 for Recorded<B> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.metal()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Gradient, Gradient, Gradient)> {
        let mut gradients = (self.backward)(&dy.detach())?.into_iter();
        Ok((gradients.next().flatten(), gradients.next().flatten(), gradients.next().flatten()))
    }
}
