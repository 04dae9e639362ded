//! The nodes that stand for layers in the rewritten file: their operation types and attributes.

use super::validate::attribute;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

/// Operation types of the rewritten nodes; layer 3 gives them meaning.
pub mod op {
    /// x, bias? → x·Wᵀ + bias on the last axis.
    pub const LINEAR: &str = "OffshootLinear";
    /// x (N, C, …), bias? → convolution with one group.
    pub const CONV: &str = "OffshootConv";
    /// x (N, C, …), w (kh·kw, C), bias? → convolution with one filter for each channel.
    pub const DEPTHWISE: &str = "OffshootDepthwise";
    /// ids → rows of a table.
    pub const EMBEDDING: &str = "OffshootEmbedding";
    /// What an LSTM, GRU or RNN reads, without its matrices.
    pub const RECURRENT: &str = "OffshootRecurrent";
}

/// Spatial geometry of a convolution as the file states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvAttributes {
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Steps.
    pub stride: [usize; 2],
    /// Spacing of kernel elements.
    pub dilation: [usize; 2],
    /// How the borders are padded.
    pub padding: Padding,
    /// Whether the input has one spatial axis (kernel height 1, height 1).
    pub one_axis: bool,
}

/// How a convolution's borders are padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Top, left, bottom, right.
    Explicit([usize; 4]),
    /// As much as makes out = ⌈in / stride⌉, the odd element at the end.
    SameUpper,
    /// The same with the odd element at the beginning.
    SameLower,
}

impl ConvAttributes {
    /// As integers, for a node attribute.
    pub(super) fn encode(&self) -> Vec<i64> {
        let (mode, pads) = match self.padding {
            Padding::Explicit(p) => (0, p),
            Padding::SameUpper => (1, [0; 4]),
            Padding::SameLower => (2, [0; 4]),
        };
        let numbers = [self.kernel, self.stride, self.dilation].concat();
        let numbers = numbers.into_iter().chain(pads).map(|v| v as i64);
        numbers.chain([mode, i64::from(self.one_axis)]).collect()
    }

    /// Reads what [`op::CONV`] and [`op::DEPTHWISE`] nodes carry as `geometry`.
    pub fn decode(values: &[i64]) -> Option<ConvAttributes> {
        let v: Vec<usize> =
            values.iter().map(|&v| usize::try_from(v).ok()).collect::<Option<_>>()?;
        let &[kh, kw, sh, sw, dh, dw, t, l, b, r, mode, one_axis] = v.as_slice() else {
            return None;
        };
        let padding = match mode {
            0 => Padding::Explicit([t, l, b, r]),
            1 => Padding::SameUpper,
            2 => Padding::SameLower,
            _ => return None,
        };
        Some(ConvAttributes {
            kernel: [kh, kw],
            stride: [sh, sw],
            dilation: [dh, dw],
            padding,
            one_axis: one_axis != 0,
        })
    }

    /// The geometry of a Conv node with a kernel of this shape; `None` for more than two axes.
    pub(super) fn of(node: &NodeProto, kernel: &[usize]) -> Option<ConvAttributes> {
        let one_axis = kernel.len() == 1;
        if kernel.is_empty() || kernel.len() > 2 {
            return None;
        }
        let pair = |name: &str| -> Option<[usize; 2]> {
            let ints = attribute(node, name).map(|a| a.ints.as_slice()).unwrap_or(&[]);
            let v: Vec<usize> = ints.iter().map(|&v| v as usize).collect();
            match (one_axis, v.as_slice()) {
                (_, []) => Some([1, 1]),
                (true, &[w]) => Some([1, w]),
                (false, &[h, w]) => Some([h, w]),
                _ => None,
            }
        };
        let pads = attribute(node, "pads").map(|a| a.ints.as_slice()).unwrap_or(&[]);
        let pads: Vec<usize> = pads.iter().map(|&p| p as usize).collect();
        let explicit = match (one_axis, pads.as_slice()) {
            (_, []) => [0; 4],
            (true, &[l, r]) => [0, l, 0, r],
            (false, &[t, l, b, r]) => [t, l, b, r],
            _ => return None,
        };
        let auto_pad = attribute(node, "auto_pad").map(|a| a.s.as_slice()).unwrap_or(b"NOTSET");
        let padding = match auto_pad {
            b"NOTSET" | b"" => Padding::Explicit(explicit),
            b"VALID" => Padding::Explicit([0; 4]),
            b"SAME_UPPER" => Padding::SameUpper,
            b"SAME_LOWER" => Padding::SameLower,
            _ => return None,
        };
        Some(ConvAttributes {
            kernel: if one_axis { [1, kernel[0]] } else { [kernel[0], kernel[1]] },
            stride: pair("strides")?,
            dilation: pair("dilations")?,
            padding,
            one_axis,
        })
    }

    /// Whether it is a matrix product on the channels of every pixel.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1]
            && self.stride == [1, 1]
            && !matches!(self.padding, Padding::Explicit(p) if p != [0; 4])
    }
}

pub(super) fn rewritten(op_type: &str, node: &NodeProto) -> NodeProto {
    NodeProto {
        name: node.name.clone(),
        op_type: op_type.to_string(),
        output: node.output.clone(),
        ..NodeProto::default()
    }
}

pub(super) fn int_attribute(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..AttributeProto::default()
    }
}

pub(super) fn ints_attribute(name: &str, values: Vec<i64>) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Ints as i32,
        ints: values,
        ..AttributeProto::default()
    }
}

pub(super) fn float_tensor(name: &str, shape: &[usize], values: Vec<f32>) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: shape.iter().map(|&d| d as i64).collect(),
        data_type: DataType::Float as i32,
        raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}
