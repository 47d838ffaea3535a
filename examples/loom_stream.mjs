// A stream of The Loom's API: server-sent events, and the hidden states in the last one. Needs Node 18 or later.
//
//     loom-gguf serve &
//     node loom_stream.mjs [http://localhost:11434]

const address = process.argv[2] ?? 'http://localhost:11434'

// Events as { event, data }. EventSource cannot be used: it sends no body.
async function* events(response) {
  const decoder = new TextDecoder()
  let rest = ''
  for await (const piece of response.body) {
    const whole = (rest + decoder.decode(piece, { stream: true })).split('\n\n')
    rest = whole.pop()
    for (const block of whole) {
      const fields = block.split('\n').map((line) => line.split(/: ?(.*)/s))
      const data = fields.filter(([name]) => name === 'data').map(([, value]) => value).join('\n')
      yield { event: fields.find(([name]) => name === 'event')?.[1], data: JSON.parse(data) }
    }
  }
}

// Float32Array of base64, which is little-endian as every machine that runs Node.
function floats({ data }) {
  const bytes = Uint8Array.from(Buffer.from(data, 'base64'))
  return new Float32Array(bytes.buffer)
}

async function main() {
  const response = await fetch(`${address}/generate/stream`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({
      model: 'demo',
      prompt: 'One morning a fox',
      max_tokens: 8,
      temperature: 0,
      return_hidden_states: true,
      hidden_state_layers: [0, -1],
      hidden_state_format: 'base64',
    }),
  })
  if (!response.ok) throw new Error(JSON.stringify((await response.json()).detail))
  for await (const { event, data } of events(response)) {
    if (event === 'error') throw new Error(data.error)
    if (event === 'token') process.stdout.write(`${data.token}|`)
    if (event === 'done') {
      console.log(`\n${data.token_count} tokens: ${data.token_ids.join(' ')}`)
      for (const [index, state] of Object.entries(data.hidden_states)) {
        const row = floats(state)
        const first = [...row.slice(0, 4)].map((value) => value.toFixed(3)).join(', ')
        console.log(`hidden state ${index}: ${state.shape.join(' x ')}, begins ${first}`)
      }
    }
  }
}

try {
  await main()
} catch (error) {
  console.error(error.cause?.message ?? error.message)
  process.exitCode = 1
}
