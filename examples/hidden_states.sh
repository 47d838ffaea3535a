#!/bin/sh
# The server's three APIs with curl.
#
#     loom-gguf serve &
#     sh hidden_states.sh [http://localhost:11434]
#
# For a Unix socket: curl --unix-socket /tmp/loom.sock http://localhost/...

set -eu
address=${1:-http://localhost:11434}

ask() { # path, body
    curl --fail-with-body --silent --show-error "$address$1" --data "$2"
    echo
}

echo "-- Ollama's API: a line for each token, with the last layer's output (int8, and its scale)"
ask /api/generate '{
    "model": "demo", "prompt": "One morning a fox", "raw": true, "options": {"temperature": 0, "num_predict": 2},
    "expose_hidden": {"last_layer_only": true, "compression": "int8", "encoding": "base64"}
}'

echo "-- The Loom's API: the text, and the final state of the last token"
ask /generate '{
    "model": "demo", "prompt": "One morning a fox", "max_tokens": 2, "temperature": 0,
    "hidden_state_layers": [-1], "hidden_state_format": "base64"
}'

echo "-- The Loom's API: numbers about a text's vector"
ask /analyze '{"model": "demo", "text": "One morning a fox"}'

echo "-- OpenAI's API: a chat"
ask /v1/chat/completions '{
    "model": "demo", "messages": [{"role": "user", "content": "Tell me a calm story."}],
    "temperature": 0, "max_tokens": 8
}'

echo "-- what is loaded now"
curl --fail-with-body --silent --show-error "$address/models"
echo
