"""operators.py [--check]: writes src/import/operators.tsv and docs/OPERATORS.md, or says whether they are
as this script would write them (exit 1 if not).

For every operator: who reads it (tract, one of our readers in src/graph/onnx, or a rewriting in
src/import/lowering), and which of its attributes that reader looks at. tract's reader looks at an attribute
if its source asks for it by name; ours likewise. An attribute that nobody looks at may only have its
default. What the sources can't say (attributes that are read and misunderstood, that change nothing, that
only some values are right for) is said below, in JUDGED, and checked by tests/onnx/node_tests.py.

Needs the onnx package; tract's source is found in cargo's registry.
"""
import collections, glob, os, re, sys

import onnx

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOCK = open(f'{ROOT}/Cargo.lock').read()
VERSION = re.search(r'name = "tract-onnx"\nversion = "([^"]+)"', LOCK)[1]
CARGO = os.environ.get('CARGO_HOME', os.path.expanduser('~/.cargo'))
TRACT = glob.glob(f'{CARGO}/registry/src/*/tract-onnx-{VERSION}/src/ops')[0]
# Reading further sets than this would be a guess.
MAX_OPSET = 28
DOMAINS = {'': 'ai.onnx', 'ai.onnx.ml': 'ai.onnx.ml', 'com.microsoft': 'com.microsoft'}

# Attributes that change no result: hints, names of the first operator sets, and what only training reads.
IDLE = {
    '*': {'consumed_inputs'},
    'BatchNormalization': {'is_test', 'momentum'},
    'Cast': {'saturate', 'round_mode'},
    'CastLike': {'saturate', 'round_mode'},
    'Clip': set(),
    'Dropout': {'is_test', 'ratio', 'seed'},
    'QuantizeLinear': {'saturate', 'precision'},
    'Split': {'num_outputs'},
    'TopK': {'sorted'},
}
# (operator, attribute): the values that are read right, where not all are.
VALUES = {
    ('GroupNormalization', 'stash_type'): ['1'],
    ('LSTM', 'direction'): ['forward', 'bidirectional'],
    ('GRU', 'direction'): ['forward', 'bidirectional'],
    ('RNN', 'direction'): ['forward', 'bidirectional'],
    ('RMSNormalization', 'stash_type'): ['1'],
    ('Range', 'stash_type'): ['1'],
    ('Attention', 'softmax_precision'): ['1', '10', '11'],
}
# Attributes that are not asked for where this script looks, yet whose every value is right: the weights say
# the same, or the part that all recurrent layers share asks (rec/common.rs).
IMPLIED = {(op, a) for op in ('LSTM', 'GRU', 'RNN') for a in ('hidden_size', 'layout')}
# The activations that the recurrent layers have without being told.
DEFAULT_ACTIVATIONS = {'LSTM': 'Sigmoid Tanh Tanh', 'GRU': 'Sigmoid Tanh', 'RNN': 'Tanh'}
# (operator, attribute) that is asked for and not read right.
WRONG = set()
# Operators that tract registers and does not read right, or that the graph section can't hold.
REFUSED = {
    'ArrayFeatureExtractor', 'CategoryMapper', 'ConstantLike', 'Multinomial', 'ParametricSoftplus',
    'RandomNormal', 'RandomNormalLike', 'RandomUniform', 'RandomUniformLike', 'Rsqrt', 'ScaledTanh',
    'LinearClassifier', 'LinearRegressor', 'Normalizer', 'TreeEnsembleClassifier', 'Bernoulli',
}
# Operators of com.microsoft, which has no schemas here: inputs, outputs, attributes. Those that
# src/import/lowering writes out, those with a reader of ours, and those that tract reads.
CONV = 'auto_pad dilations group kernel_shape pads strides'
MICROSOFT = {
    'Attention': (6, 1, 'num_heads unidirectional=0|1 mask_filter_value scale do_rotary=0'),
    'BiasGelu': (2, 1, ''),
    'DynamicQuantizeLSTM': (12, 3, 'direction=forward|bidirectional hidden_size input_forget=0'),
    'DynamicQuantizeMatMul': (5, 1, ''),
    'EmbedLayerNormalization': (9, 3, 'epsilon mask_index_type=0'),
    'FastGelu': (2, 1, ''),
    'FusedConv': (4, 1, CONV + ' activation=Relu|Tanh|Sigmoid|LeakyRelu|Elu|HardSigmoid|Clip|Softplus|Softsign|Identity activation_params'),
    'FusedGemm': (3, 1, 'activation=Relu|Tanh|Sigmoid|LeakyRelu|Elu|HardSigmoid|Softplus|Softsign|Identity activation_alpha activation_beta activation_gamma alpha beta transA transB'),
    'FusedMatMul': (2, 1, 'alpha transA transB transBatchA=0 transBatchB=0'),
    'Gelu': (1, 1, ''),
    'MatMulIntegerToFloat': (7, 1, ''),
    'MatMulNBits': (6, 1, 'K N accuracy_level bits block_size'),
    'MultiHeadAttention': (6, 1, 'num_heads unidirectional=0|1 mask_filter_value scale'),
    'QGemm': (9, 1, 'alpha transA transB'),
    'QLinearAdd': (8, 1, ''),
    'QLinearAveragePool': (5, 1, 'auto_pad ceil_mode channels_last=0 count_include_pad kernel_shape pads strides'),
    'QLinearConcat': (3072, 1, 'axis'),
    'QLinearConv': (9, 1, CONV + ' channels_last=0'),
    'QLinearGlobalAveragePool': (5, 1, 'channels_last=0'),
    'QLinearLeakyRelu': (5, 1, 'alpha'),
    'QLinearMul': (8, 1, ''),
    'QLinearSigmoid': (5, 1, ''),
    'QLinearSoftmax': (5, 1, 'axis opset'),
    'QuickGelu': (1, 1, 'alpha'),
    'SkipLayerNormalization': (5, 4, 'epsilon'),
    'SkipSimplifiedLayerNormalization': (4, 4, 'epsilon'),
    'SimplifiedLayerNormalization': (2, 1, 'axis epsilon stash_type=1'),
}
# Of the default domain without a schema: ONNX Runtime writes them so.
EXTRA = {'SimplifiedLayerNormalization': (2, 1, 'axis epsilon stash_type=1')}


def functions(text):
    """Bodies of a Rust source's functions by name."""
    found = {}
    for m in re.finditer(r'\bfn (\w+)\s*(?:<[^>]*>)?\(', text):
        start = text.find('{', m.end())
        depth = 0
        for at in range(start, len(text)):
            depth += {'{': 1, '}': -1}.get(text[at], 0)
            if depth == 0:
                break
        found.setdefault(m[1], text[start:at + 1])
    return found


class Sources:
    """What operators are registered in a folder of sources, and the attributes that each asks for."""

    def __init__(self, folder, asked, skip):
        self.asked, self.skip = re.compile(asked), skip
        self.text = {f: open(f).read().split('#[cfg(test)]')[0] for f in sorted(glob.glob(folder + '/**/*.rs', recursive=True))}
        self.fn = {f: functions(t) for f, t in self.text.items()}

    def attributes(self, file, body, seen):
        found = set(self.asked.findall(body))
        for name in set(re.findall(r'\b(\w+)\b', body)):
            if name in self.fn[file] and (file, name) not in seen and name not in self.skip:
                seen.add((file, name))
                found |= self.attributes(file, self.fn[file][name], seen)
        # Functions of the module above (`super::pad`).
        for name in set(re.findall(r'super::(\w+)\(', body)):
            for other in self.fn:
                if os.path.basename(other) == 'mod.rs' and os.path.dirname(other) == os.path.dirname(file) and name in self.fn[other] and (other, name) not in seen:
                    seen.add((other, name))
                    found |= self.attributes(other, self.fn[other][name], seen)
        return found

    def of(self, file, builder):
        found = set(self.asked.findall(builder))
        for module, name in re.findall(r'(?:(\w+)::)?(\w+)', builder):
            for other in self.fn:
                near = os.path.basename(other) == module + '.rs' if module else other == file
                if name in self.fn[other] and near:
                    found |= self.attributes(other, self.fn[other][name], {(other, name)})
        return found


def tract_reads():
    s = Sources(TRACT, r'get_attr\w*(?:::<[^(]*>)?\(\s*"(\w+)"', {'rules', 'wire', 'eval', 'name', 'to_typed', 'new'})
    found = {}
    for file, text in s.text.items():
        for m in re.finditer(r'insert\(\s*"(\w+)",', text):
            depth, at = 1, m.end()
            while depth:
                depth += {'(': 1, ')': -1}.get(text[at], 0)
                at += 1
            found[m[1]] = s.of(file, text[m.end():at - 1])
    return found


def ours():
    s = Sources(f'{ROOT}/src/graph/onnx', r'\b(?:int|float|text|has|int_list|float_list|sizes|tensor_attribute)\(\s*"(\w+)"', {'new'})
    read = {}
    for f, t in s.text.items():
        for name, builder in re.findall(r'"([\w.]+)" => (\w+);', t):
            read[name] = s.of(f, builder)
    return read


def written_out():
    """Operators that src/import/lowering takes, by domain."""
    text = open(f'{ROOT}/src/import/lowering/quantized.rs').read()
    return {n for d, n in re.findall(r'\("(""|[^"]*)"[^,]*, "(\w+)"\)', text) if 'ai.onnx' in d or d == ''} | {n for n in re.findall(r'\("" \| "ai.onnx", "(\w+)"\)', text)}


def default_of(attribute):
    value = attribute.default_value
    if value.type == onnx.AttributeProto.INT:
        return str(value.i)
    if value.type == onnx.AttributeProto.FLOAT:
        return repr(float('%.9g' % value.f))
    if value.type == onnx.AttributeProto.STRING:
        return value.s.decode()
    return None


def entry(name, schema, read, who):
    """The attributes of one version that may be there: `name` or `name=value|value`."""
    allowed = []
    idle = IDLE['*'] | IDLE.get(name, set())
    for attribute in sorted(schema.attributes):
        key = (name, attribute)
        if key in VALUES and not (name in ('LSTM', 'GRU', 'RNN') and who == 'offshoot'):
            allowed.append(attribute + '=' + '|'.join(VALUES[key]))
        elif attribute == 'activations' and name in DEFAULT_ACTIVATIONS and attribute not in read:
            allowed.append(f'activations={DEFAULT_ACTIVATIONS[name]}|' + ' '.join([DEFAULT_ACTIVATIONS[name]] * 2))
        elif (attribute in read and key not in WRONG) or attribute in idle or key in IMPLIED:
            allowed.append(attribute)
        else:
            default = default_of(schema.attributes[attribute])
            if default is not None:
                allowed.append(f'{attribute}={default}')
    return allowed


def inputs_of(name, schema, who):
    if who == 'tract' and name in ('LSTM', 'GRU', 'RNN'):
        return schema.max_input
    return min(schema.max_input, 1 << 16)


def rows():
    tract, own, out = tract_reads(), ours(), written_out()
    beside = ''.join(open(f'{ROOT}/src/graph/{name}.rs').read() for name in ('shapes', 'divided'))
    history = collections.defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in DOMAINS and schema.since_version <= MAX_OPSET:
            history[schema.domain, schema.name].append(schema)
    result = []
    for (domain, name), versions in sorted(history.items()):
        versions.sort(key=lambda s: s.since_version)
        if domain != '':
            continue
        for i, schema in enumerate(versions):
            until = versions[i + 1].since_version - 1 if i + 1 < len(versions) else MAX_OPSET
            if name in out:
                who, read = 'import', set(schema.attributes)
            elif name in own:
                who, read = 'offshoot', own[name]
            elif name in ('LSTM', 'GRU', 'RNN') and os.path.exists(f'{ROOT}/src/import/recurrent.rs'):
                # Reads every attribute or refuses it by name itself.
                who, read = 'offshoot', set(schema.attributes) - {'output_sequence'}
            elif name in tract and name not in REFUSED:
                # src/graph/shapes.rs and divided.rs take some of tract's readers' places, attributes and all.
                who, read = 'offshoot' if f'insert("{name}"' in beside else 'tract', tract[name]
            else:
                continue
            if schema.since_version < 7 and name in ('Add', 'Sub', 'Mul', 'Div', 'Pow', 'And', 'Or', 'Xor', 'Equal', 'Greater', 'Less'):
                who, read = 'offshoot', {'axis', 'broadcast'}
            if name in ('Softmax', 'LogSoftmax', 'Hardmax', 'Constant') and not read:
                raise SystemExit(f'nothing found for {name}')
            result.append((domain, name, schema.since_version, until, who, inputs_of(name, schema, who), min(schema.max_output, 1 << 16), entry(name, schema, read, who)))
    for domain, table in (('com.microsoft', MICROSOFT), ('', EXTRA)):
        for name, (inputs, outputs, attributes) in table.items():
            if domain == '' and ('', name) in history:
                continue
            who = 'offshoot' if 'com.microsoft.' + name in own and name != 'Attention' else 'tract' if name in ('SimplifiedLayerNormalization', 'SkipSimplifiedLayerNormalization') else 'import'
            result.append((domain, name, 1, MAX_OPSET, who, inputs, outputs, sorted(attributes.split())))
    merged = []
    for row in sorted(result, key=lambda r: (r[0], r[1], r[2])):
        last = merged[-1] if merged else None
        if last and (last[:2], last[3] + 1, last[4:]) == (row[:2], row[2], row[4:]):
            merged[-1] = last[:3] + row[3:]
        else:
            merged.append(row)
    return merged, history


def table(result):
    head = ('# Written by scripts/operators.py from tract-onnx ' + VERSION + ' and src/graph/onnx; see there.\n'
            '# domain, operator, operator sets from and to, who reads it, most inputs, most outputs, attributes that may\n'
            '# be there: with any value, or with one of those after "=".\n')
    return head + ''.join('\t'.join(map(str, r[:7])) + '\t' + ';'.join(r[7]) + '\n' for r in result)


def page(result, history):
    known = {(r[0], r[1]) for r in result}
    lines = ['# Operators', '',
             f'Which ONNX operators are read, with which attributes. Written by `scripts/operators.py` from the sources of tract-onnx {VERSION}',
             'and of this crate; the importer holds every file against the same table (`src/import/operators.tsv`) and refuses',
             'by name what lies outside: operator, node, attribute and value. What an operator needs of its inputs (shapes that must be',
             'fixed, inputs that must be constant) is checked when the graph is made, and refused by name too.', '',
             '"tract": read by tract. "offshoot": by a reader of ours. "import": written out as other operators when a file is read.',
             'An attribute that is not listed may only be left out or have its default.', '',
             '| operator | sets | read by | attributes |', '|---|---|---|---|']
    for domain, name, since, until, who, _, _, attributes in result:
        label = f'{domain}.{name}' if domain else name
        shown = ', '.join(a.replace('=', ' = ').replace('|', ' or ') for a in attributes if not a.startswith('consumed_inputs'))
        lines.append(f'| {label} | {since} to {until} | {who} | {shown} |')
    missing = sorted(n for d, n in history if d == '' and ('', n) not in known)
    lines += ['', 'Refused by name, of the default domain: ' + ', '.join(missing) + '.', '',
              'Of `com.microsoft` only the operators above are read; of `ai.onnx.ml` none.', '']
    return '\n'.join(lines)


def main():
    result, history = rows()
    made = {f'{ROOT}/src/import/operators.tsv': table(result), f'{ROOT}/docs/OPERATORS.md': page(result, history)}
    stale = [p for p, text in made.items() if not os.path.exists(p) or open(p).read() != text]
    if '--check' in sys.argv:
        for path in stale:
            print(f'{path} is not as scripts/operators.py writes it')
        sys.exit(bool(stale))
    for path in stale:
        open(path, 'w').write(made[path])
        print('wrote', path)


main()
