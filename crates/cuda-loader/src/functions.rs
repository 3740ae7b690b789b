//! The functions that candle calls, by library: what cudarc's safe modules and candle's compiled kernels leave undefined.
//!
//! After an update of candle, a link error names what is missing here.

crate::trampoline::define_functions! {
    Driver: [
        cuCtxCreate_v3, cuCtxCreate_v4, cuCtxDestroy_v2, cuCtxGetCacheConfig, cuCtxGetCurrent, cuCtxGetLimit,
        cuCtxGetStreamPriorityRange, cuCtxSetCacheConfig, cuCtxSetCurrent, cuCtxSetFlags, cuCtxSetLimit,
        cuCtxSynchronize, cuDestroyExternalMemory, cuDeviceGet, cuDeviceGetAttribute, cuDeviceGetCount,
        cuDeviceGetDefaultMemPool, cuDeviceGetMemPool, cuDeviceGetName, cuDeviceGetUuid, cuDeviceGetUuid_v2,
        cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRetain, cuDeviceSetMemPool, cuDeviceTotalMem_v2, cuEventCreate,
        cuEventDestroy_v2, cuEventElapsedTime, cuEventElapsedTime_v2, cuEventQuery, cuEventRecord, cuEventSynchronize,
        cuExternalMemoryGetMappedBuffer, cuFuncGetAttribute, cuFuncSetAttribute, cuFuncSetCacheConfig, cuGetErrorName,
        cuGetErrorString, cuGraphClone, cuGraphDestroy, cuGraphExecDestroy, cuGraphInstantiateWithFlags, cuGraphLaunch,
        cuGraphUpload, cuImportExternalMemory, cuInit, cuLaunchCooperativeKernel, cuLaunchHostFunc, cuLaunchKernel,
        cuMemAdvise_v2, cuMemAllocAsync, cuMemAllocFromPoolAsync, cuMemAllocManaged, cuMemAlloc_v2, cuMemFreeAsync,
        cuMemFreeHost, cuMemFree_v2, cuMemGetInfo_v2, cuMemHostAlloc, cuMemPoolCreate, cuMemPoolDestroy,
        cuMemPoolGetAttribute, cuMemPoolSetAttribute, cuMemPoolTrimTo, cuMemPrefetchAsync_v2, cuMemcpyDtoDAsync_v2,
        cuMemcpyDtoD_v2, cuMemcpyDtoHAsync_v2, cuMemcpyDtoH_v2, cuMemcpyHtoDAsync_v2, cuMemcpyHtoD_v2,
        cuMemcpyPeerAsync, cuMemsetD8Async, cuMemsetD8_v2, cuModuleGetFunction, cuModuleGetGlobal_v2, cuModuleLoad,
        cuModuleLoadData, cuModuleUnload, cuOccupancyAvailableDynamicSMemPerBlock,
        cuOccupancyMaxActiveBlocksPerMultiprocessor, cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags,
        cuOccupancyMaxActiveClusters, cuOccupancyMaxPotentialBlockSize, cuOccupancyMaxPotentialBlockSizeWithFlags,
        cuOccupancyMaxPotentialClusterSize, cuProfilerStart, cuProfilerStop, cuStreamAttachMemAsync,
        cuStreamBeginCapture_v2, cuStreamCreate, cuStreamCreateWithPriority, cuStreamDestroy_v2, cuStreamEndCapture,
        cuStreamIsCapturing, cuStreamSynchronize, cuStreamWaitEvent,
    ]
    Runtime: [
        __cudaGetKernel, __cudaInitModule, __cudaLaunchKernel, __cudaLaunchKernel_ptsz, __cudaPopCallConfiguration,
        __cudaPushCallConfiguration, __cudaRegisterFatBinary, __cudaRegisterFatBinaryEnd, __cudaRegisterFunction,
        __cudaRegisterVar, __cudaUnregisterFatBinary, cudaDeviceGetAttribute, cudaFuncSetAttribute, cudaGetDevice,
        cudaGetErrorString, cudaGetLastError, cudaLaunchKernel, cudaLaunchKernel_ptsz, cudaMemcpyAsync,
        cudaMemcpyAsync_ptsz, cudaMemsetAsync, cudaMemsetAsync_ptsz, cudaPeekAtLastError, cudaStreamSynchronize,
        cudaStreamSynchronize_ptsz,
    ]
    Blas: [
        cublasCreate_v2, cublasDasum_v2, cublasDestroy_v2, cublasDgemmStridedBatched, cublasDgemm_v2, cublasDgemv_v2,
        cublasGemmEx, cublasGemmGroupedBatchedEx, cublasGemmStridedBatchedEx, cublasGetPointerMode_v2, cublasSasum_v2,
        cublasSetPointerMode_v2, cublasSetStream_v2, cublasSgemmStridedBatched, cublasSgemm_v2, cublasSgemv_v2,
    ]
    BlasLt: [
        cublasLtCreate, cublasLtDestroy, cublasLtLoggerOpenFile, cublasLtLoggerSetLevel, cublasLtMatmul,
        cublasLtMatmulAlgoGetHeuristic, cublasLtMatmulDescCreate, cublasLtMatmulDescDestroy,
        cublasLtMatmulDescSetAttribute, cublasLtMatmulPreferenceCreate, cublasLtMatmulPreferenceDestroy,
        cublasLtMatmulPreferenceSetAttribute, cublasLtMatrixLayoutCreate, cublasLtMatrixLayoutDestroy,
        cublasLtMatrixLayoutSetAttribute,
    ]
    Random: [
        curandCreateGenerator, curandDestroyGenerator, curandGenerate, curandGenerateLogNormal,
        curandGenerateLogNormalDouble, curandGenerateLongLong, curandGenerateNormal, curandGenerateNormalDouble,
        curandGeneratePoisson, curandGenerateUniform, curandGenerateUniformDouble, curandSetGeneratorOffset,
        curandSetPseudoRandomGeneratorSeed, curandSetStream,
    ]
    Compiler: [
        nvrtcCompileProgram, nvrtcCreateProgram, nvrtcDestroyProgram, nvrtcGetPTX, nvrtcGetPTXSize, nvrtcGetProgramLog,
        nvrtcGetProgramLogSize,
    ]
    Dnn: [
        cudnnActivationForward, cudnnAdvInferVersionCheck, cudnnAdvTrainVersionCheck, cudnnAdvVersionCheck,
        cudnnCnnInferVersionCheck, cudnnCnnTrainVersionCheck, cudnnCnnVersionCheck, cudnnConvolutionBackwardData,
        cudnnConvolutionBackwardFilter, cudnnConvolutionBiasActivationForward, cudnnConvolutionForward, cudnnCreate,
        cudnnCreateActivationDescriptor, cudnnCreateConvolutionDescriptor, cudnnCreateFilterDescriptor,
        cudnnCreatePoolingDescriptor, cudnnCreateReduceTensorDescriptor, cudnnCreateTensorDescriptor, cudnnDestroy,
        cudnnDestroyConvolutionDescriptor, cudnnDestroyFilterDescriptor, cudnnDestroyReduceTensorDescriptor,
        cudnnDestroyTensorDescriptor, cudnnGetConvolutionBackwardDataAlgorithm_v7,
        cudnnGetConvolutionBackwardDataWorkspaceSize, cudnnGetConvolutionBackwardFilterAlgorithm_v7,
        cudnnGetConvolutionBackwardFilterWorkspaceSize, cudnnGetConvolutionForwardAlgorithm_v7,
        cudnnGetConvolutionForwardWorkspaceSize, cudnnGetCudartVersion, cudnnGetReductionIndicesSize,
        cudnnGetReductionWorkspaceSize, cudnnGetVersion, cudnnOpsInferVersionCheck, cudnnOpsTrainVersionCheck,
        cudnnOpsVersionCheck, cudnnPoolingForward, cudnnReduceTensor, cudnnSetActivationDescriptor,
        cudnnSetConvolution2dDescriptor, cudnnSetConvolutionGroupCount, cudnnSetConvolutionMathType,
        cudnnSetConvolutionNdDescriptor, cudnnSetFilter4dDescriptor, cudnnSetFilterNdDescriptor,
        cudnnSetPoolingNdDescriptor, cudnnSetReduceTensorDescriptor, cudnnSetStream, cudnnSetTensor4dDescriptor,
        cudnnSetTensor4dDescriptorEx, cudnnSetTensorNdDescriptor, cudnnSoftmaxForward,
    ]
}

/// Makes a program that calls this contain all of the functions above.
pub(crate) fn keep() {
    unsafe extern "C" {
        fn cuInit();
    }
    std::hint::black_box(cuInit as unsafe extern "C" fn());
}
