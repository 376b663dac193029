# shellcheck shell=bash
# What NCCL and torch are told of the network between nodes. To be sourced, before anything of the job is started:
#
#     source launch/cluster/network.sh ib      InfiniBand or RoCE by ConnectX cards
#     source launch/cluster/network.sh efa     Elastic Fabric Adapter, on AWS
#     source launch/cluster/network.sh tcp     neither: any Ethernet, for a first try
#
# What is set already stays as it is: `export NCCL_SOCKET_IFNAME=bond0` before it wins. Variables and their values:
# https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html, of EFA
# https://github.com/aws-samples/awsome-distributed-training/blob/main/1.architectures/efa-cheatsheet.md

_default() { [[ -v $1 ]] || export "$1=$2"; }

# The ways that connections are first made; the data goes another way where there is one.
_default NCCL_SOCKET_IFNAME "^lo,docker,veth"
_default NCCL_DEBUG WARN # INFO says which network was taken: look for "NET/IB" or "NET/OFI" once
_default TORCH_NCCL_ASYNC_ERROR_HANDLING 1 # a worker that waits for one that died ends, and the job can be started again
_default PYTORCH_CUDA_ALLOC_CONF expandable_segments:True # activations of changing size do not leave holes
_default OMP_NUM_THREADS 1 # decoding is done by processes

case "${1:-}" in
    ib)
        _default NCCL_NET IB # rather no start than a run over Ethernet, which would take ten times as long
        _default NCCL_IB_HCA mlx5
        _default NCCL_IB_TIMEOUT 22 # as large clusters need: 4.096 us x 2^22
        ;;
    efa)
        _default NCCL_NET_PLUGIN ofi
        _default FI_PROVIDER efa
        _default FI_EFA_USE_HUGE_PAGE 0 # or processes that load data find no memory
        _default LD_LIBRARY_PATH ""
        _efa=/opt/amazon/ofi-nccl/lib:/opt/amazon/aws-ofi-nccl/lib:/opt/amazon/efa/lib # newer and older installers
        export LD_LIBRARY_PATH="$_efa${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
        unset _efa
        ;;
    tcp)
        _default NCCL_NET Socket
        _default NCCL_IB_DISABLE 1
        _default NCCL_SOCKET_NTHREADS 4
        _default NCCL_NSOCKS_PERTHREAD 4
        ;;
    *)
        echo "network.sh: network: came '${1:-}', expected one of ib, efa, tcp" >&2
        return 2 2>/dev/null || exit 2
        ;;
esac
unset -f _default
